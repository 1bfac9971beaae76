package control

import (
	"crypto/rand"
	"math/big"
	"strconv"

	"github.com/skep-dev/skep/internal/store"
)

// A service whose user gave it no name gets one that is easy to say.
var (
	moods = []string{
		"amber", "bold", "brisk", "bright", "busy", "calm", "clever", "cosy", "deft", "eager", "early", "fair", "fleet",
		"fond", "gentle", "glad", "golden", "happy", "hardy", "humble", "jolly", "keen", "kind", "lively", "lucky", "mellow",
		"merry", "mild", "neat", "nimble", "patient", "placid", "plucky", "proud", "quick", "quiet", "ready", "rosy", "sharp",
		"snug", "spry", "steady", "sunny", "sweet", "swift", "tidy", "trusty", "warm", "wise", "witty",
	}
	people = []string{
		"aristotle", "butler", "columella", "crane", "darwin", "dzierzon", "frisch", "hatch", "huber", "hypatia", "janscha",
		"karl", "keys", "langstroth", "lindauer", "linnaeus", "lovelace", "maeterlinck", "mendel", "miller", "noether",
		"prokopovych", "quinby", "reaumur", "root", "seeley", "swammerdam", "turing", "varro", "virgil", "wren", "zander",
	}
)

// someName returns a name no service has.
func someName(v store.View) string {
	name := pick(moods) + "_" + pick(people)
	for n := 1; v.ServiceByName(name) != nil; n++ {
		name = pick(moods) + "_" + pick(people) + strconv.Itoa(n)
	}
	return name
}

func pick(words []string) string {
	n, err := rand.Int(rand.Reader, big.NewInt(int64(len(words))))
	if err != nil {
		return words[0]
	}
	return words[n.Int64()]
}
