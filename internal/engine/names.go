package engine

import "math/rand/v2"

// Names for containers that are given none: a manner and somebody of the trade.
var (
	manners = []string{
		"able", "agile", "amber", "ample", "apt", "bold", "brave", "breezy", "bright", "brisk", "calm", "candid",
		"cheerful", "clear", "clever", "cosy", "crisp", "daring", "deft", "eager", "earnest", "easy", "fair", "fond",
		"frank", "gentle", "glad", "golden", "grand", "happy", "hardy", "honest", "jolly", "keen", "kind", "lively",
		"loyal", "lucid", "mellow", "merry", "mild", "modest", "neat", "nimble", "noble", "patient", "plucky", "proud",
		"quick", "quiet", "ready", "serene", "sharp", "silver", "smooth", "snug", "spry", "steady", "stoic", "sunny",
		"swift", "tender", "tidy", "trusty", "vivid", "warm", "wise", "witty", "zesty",
	}
	people = []string{
		"allen", "backus", "bardeen", "bartik", "berners", "bohr", "borg", "brooks", "cerf", "clarke", "codd", "conway",
		"cray", "curie", "dijkstra", "engelbart", "erdos", "euler", "fermat", "feynman", "floyd", "franklin", "gauss",
		"goldberg", "gray", "hamming", "hedy", "hoare", "holberton", "hopper", "huffman", "iverson", "johnson", "kahn",
		"karp", "kay", "kilby", "knuth", "lamport", "liskov", "lovelace", "mccarthy", "meitner", "metcalfe", "milner",
		"minsky", "moore", "naur", "neumann", "newell", "noether", "nygaard", "pascal", "perlman", "postel", "rabin",
		"ritchie", "shannon", "spafford", "stallman", "tarjan", "thompson", "turing", "wilkes", "wirth", "yao", "zuse",
	}
)

func randomName() string {
	return manners[rand.IntN(len(manners))] + "_" + people[rand.IntN(len(people))]
}
