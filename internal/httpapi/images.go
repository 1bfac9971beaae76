package httpapi

import (
	"context"
	"net/http"
	"strings"
	"time"

	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/jsonstream"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/engine"
	imagestore "github.com/skep-dev/skep/internal/image"
)

func (s *Server) imageRoutes() []route {
	return []route{
		{"GET /images/json", s.imagesJSON},
		{"GET /images/get", s.imagesGet},
		{"GET /images/search", absent("searching a registry (docker search)")},
		{"POST /images/create", s.imageCreate},
		{"POST /images/load", s.imageLoad},
		{"POST /images/prune", s.imagePrune},
		// An image's name may hold slashes, so what is asked of it is told by the end.
		{"GET /images/{name...}", byEnd(map[string]handler{
			"/json": s.imageInspect, "/history": s.imageHistory, "/get": s.imageGet,
			"/attestations": absent("listing an image's attestations"),
		})},
		{"POST /images/{name...}", byEnd(map[string]handler{
			"/tag": s.imageTag, "/push": s.imagePush,
		})},
		{"DELETE /images/{name...}", s.imageRemove},
		{"GET /distribution/{name...}", byEnd(map[string]handler{"/json": s.distributionInspect})},
	}
}

// byEnd picks a handler by the last element of the path and leaves the rest as
// the path value "name".
func byEnd(handlers map[string]handler) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		path := r.PathValue("name")
		i := strings.LastIndexByte(path, '/')
		if i <= 0 || handlers[path[i:]] == nil {
			return cluster.NotFoundf("page not found")
		}
		r.SetPathValue("name", path[:i])
		return handlers[path[i:]](w, r)
	}
}

func (s *Server) imagesJSON(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	filters, err := filterParam(q)
	if err != nil {
		return err
	}
	if name := q.Get("filter"); name != "" { // the form before 1.41
		if filters == nil {
			filters = map[string]map[string]bool{}
		}
		filters["reference"] = map[string]bool{name: true}
	}
	list, err := s.imageList(r.Context(), imagestore.ListOptions{All: boolParam(q, "all"), Filters: filters})
	if err != nil {
		return err
	}
	if !before(r, "1.44") {
		return writeJSON(w, http.StatusOK, orEmpty(list))
	}
	old := make([]any, 0, len(list))
	for _, img := range list {
		if before(r, "1.43") && len(img.RepoTags) == 0 && len(img.RepoDigests) == 0 {
			img.RepoTags, img.RepoDigests = []string{"<none>:<none>"}, []string{"<none>@<none>"}
		}
		o, err := patchJSON(img, map[string]any{"VirtualSize": img.Size})
		if err != nil {
			return err
		}
		old = append(old, o)
	}
	return writeJSON(w, http.StatusOK, old)
}

// imageList lists images with the number of containers made from each.
func (s *Server) imageList(ctx context.Context, opts imagestore.ListOptions) ([]image.Summary, error) {
	list, err := s.Images.List(ctx, opts)
	if err != nil {
		return nil, err
	}
	containers, err := s.Containers.List(ctx, engine.ListOptions{All: true})
	if err != nil {
		return nil, err
	}
	uses := map[string]int64{}
	for _, c := range containers {
		uses[c.ImageID]++
	}
	for i := range list {
		list[i].Containers = uses[list[i].ID]
		list[i].RepoTags, list[i].RepoDigests = orEmpty(list[i].RepoTags), orEmpty(list[i].RepoDigests)
	}
	return list, nil
}

func (s *Server) imageInspect(w http.ResponseWriter, r *http.Request) error {
	img, err := s.Images.Inspect(r.Context(), r.PathValue("name"))
	if err != nil {
		return err
	}
	img.RepoTags, img.RepoDigests = orEmpty(img.RepoTags), orEmpty(img.RepoDigests)
	if before(r, "1.44") {
		old, err := patchJSON(img, map[string]any{"VirtualSize": img.Size})
		if err != nil {
			return err
		}
		return writeJSON(w, http.StatusOK, old)
	}
	return writeJSON(w, http.StatusOK, img)
}

func (s *Server) imageHistory(w http.ResponseWriter, r *http.Request) error {
	h, err := s.Images.History(r.Context(), r.PathValue("name"))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, orEmpty(h))
}

func (s *Server) imageTag(w http.ResponseWriter, r *http.Request) error {
	target := joinTag(r.URL.Query().Get("repo"), r.URL.Query().Get("tag"))
	if err := s.Images.Tag(r.Context(), r.PathValue("name"), target); err != nil {
		return err
	}
	w.WriteHeader(http.StatusCreated)
	return nil
}

// joinTag puts a name and a tag or digest together as the API sends them apart.
func joinTag(name, tag string) string {
	switch {
	case tag == "":
		return name
	case strings.Contains(tag, ":"):
		return name + "@" + tag
	}
	return name + ":" + tag
}

func (s *Server) imageRemove(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	name := r.PathValue("name")
	if strings.TrimSpace(name) == "" {
		return cluster.Invalidf("image name cannot be blank")
	}
	removed, err := s.Images.Remove(r.Context(), name, boolParam(q, "force"), !boolParam(q, "noprune"))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, orEmpty(removed))
}

func (s *Server) imagePrune(w http.ResponseWriter, r *http.Request) error {
	filters, err := knownFilters(r, "dangling", "label", "label!", "until")
	if err != nil {
		return err
	}
	if len(filters["label"])+len(filters["label!"]) > 0 {
		return cluster.NotImplementedf("pruning images by label is not built yet")
	}
	dangling, err := boolFilter(filters, "dangling", true)
	if err != nil {
		return err
	}
	var until time.Time
	for v := range filters["until"] {
		if until, err = parseTime("until", v); err != nil {
			return err
		}
	}
	report, err := s.Images.Prune(r.Context(), !dangling, until)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, report)
}

// progressStream sends progress as lines of JSON. It begins the answer with the
// first line, so that an error before it is still an ordinary one.
type progressStream struct {
	w   http.ResponseWriter
	out *flushed
}

func (p *progressStream) line(v any) error {
	if p.out == nil {
		out := begin(p.w, "application/json")
		p.out = &out
	}
	return p.out.line(v)
}

func (p *progressStream) progress(m jsonstream.Message) { p.line(m) }

// finish ends the stream; a late error becomes its last line.
func (p *progressStream) finish(err error) error {
	switch {
	case err == nil && p.out == nil:
		begin(p.w, "application/json")
		return nil
	case err == nil || p.out == nil:
		return err
	}
	return p.line(struct {
		jsonstream.Message
		Error string `json:"error"`
	}{jsonstream.Message{Error: &jsonstream.Error{Message: err.Error()}}, err.Error()})
}

// imageCreate pulls an image, or imports one from the request's body.
func (s *Server) imageCreate(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	platform, err := platformParam(q)
	if err != nil {
		return err
	}
	stream := &progressStream{w: w}
	if from := q.Get("fromImage"); from != "" {
		ref := joinTag(strings.TrimSpace(from), q.Get("tag"))
		if ref == from && !strings.Contains(from[strings.LastIndexByte(from, '/')+1:], ":") && !strings.Contains(from, "@") {
			return cluster.NotImplementedf("pulling all tags of an image is not built yet: name one")
		}
		return stream.finish(s.Images.Pull(r.Context(), ref, platform, authHeader(r), stream.progress))
	}
	switch src := q.Get("fromSrc"); src {
	case "-":
	case "":
		return cluster.Invalidf("fromImage or fromSrc must be given")
	default:
		return cluster.NotImplementedf("importing an image from an address is not built yet: fetch it and import from standard input")
	}
	ref := q.Get("repo")
	if ref != "" {
		ref = joinTag(ref, q.Get("tag"))
	}
	id, err := s.Images.Import(r.Context(), r.Body, ref, q.Get("message"), q["changes"], platform)
	if err == nil {
		stream.progress(jsonstream.Message{Status: id})
	}
	return stream.finish(err)
}

func (s *Server) imagePush(w http.ResponseWriter, r *http.Request) error {
	stream := &progressStream{w: w}
	ref := joinTag(r.PathValue("name"), r.URL.Query().Get("tag"))
	return stream.finish(s.Images.Push(r.Context(), ref, authHeader(r), stream.progress))
}

func (s *Server) imageLoad(w http.ResponseWriter, r *http.Request) error {
	stream := &progressStream{w: w}
	quiet := boolParam(r.URL.Query(), "quiet")
	return stream.finish(s.Images.Load(r.Context(), r.Body, func(m jsonstream.Message) {
		if quiet && m.Progress != nil {
			return
		}
		stream.progress(m)
	}))
}

func (s *Server) imageGet(w http.ResponseWriter, r *http.Request) error {
	return s.save(w, r, []string{r.PathValue("name")})
}

func (s *Server) imagesGet(w http.ResponseWriter, r *http.Request) error {
	return s.save(w, r, r.URL.Query()["names"])
}

// save streams a tar. An error in the middle cuts the connection, since only
// that tells the client that the archive is not whole.
func (s *Server) save(w http.ResponseWriter, r *http.Request, names []string) error {
	w.Header().Set("Content-Type", "application/x-tar")
	err := s.Images.Save(r.Context(), names, w)
	if tw, ok := w.(*trackingWriter); ok && err != nil && tw.wrote {
		s.Log.Error("image save was cut off", "err", err)
		panic(http.ErrAbortHandler)
	}
	return err
}

func (s *Server) distributionInspect(w http.ResponseWriter, r *http.Request) error {
	d, err := s.Images.Digest(r.Context(), r.PathValue("name"), authHeader(r))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, d)
}
