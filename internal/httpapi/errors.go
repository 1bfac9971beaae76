package httpapi

import (
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/common"

	"github.com/skep-dev/skep/internal/cluster"
)

// status is the one place where an error's kind becomes an HTTP status.
func status(err error) int {
	switch {
	case errors.Is(err, cluster.ErrNotLeader):
		return http.StatusServiceUnavailable
	case errdefs.IsNotFound(err):
		return http.StatusNotFound
	case errdefs.IsInvalidArgument(err), errdefs.IsFailedPrecondition(err), errdefs.IsOutOfRange(err):
		return http.StatusBadRequest
	case errdefs.IsConflict(err), errdefs.IsAlreadyExists(err):
		return http.StatusConflict
	case errdefs.IsUnauthorized(err):
		return http.StatusUnauthorized
	case errdefs.IsPermissionDenied(err):
		return http.StatusForbidden
	case errdefs.IsNotModified(err):
		return http.StatusNotModified
	case errdefs.IsNotImplemented(err):
		return http.StatusNotImplemented
	case errdefs.IsUnavailable(err):
		return http.StatusServiceUnavailable
	default:
		return http.StatusInternalServerError
	}
}

// writeError answers with an error. 304 has no body.
func writeError(w http.ResponseWriter, r *http.Request, err error) {
	code := status(err)
	if code == http.StatusNotModified {
		w.WriteHeader(code)
		return
	}
	writeJSON(w, code, common.ErrorResponse{Message: clip(err.Error())})
}

// maxMessage bounds an error's text, which repeats what the client has sent.
const maxMessage = 4 << 10

// clip shortens a text that is too long to be read, and says so.
func clip(s string) string {
	if len(s) <= maxMessage {
		return s
	}
	const end = 200 // what is wrong often stands at the end
	head := strings.ToValidUTF8(s[:maxMessage-end-64], "")
	tail := strings.ToValidUTF8(s[len(s)-end:], "")
	return fmt.Sprintf("%s … (%d bytes left out) … %s", head, len(s)-len(head)-len(tail), tail)
}
