package engine

import "math/rand/v2"

var (
	manners = []string{"able", "amber", "bold", "brave", "breezy", "bright", "calm", "candid", "clear", "coral", "cosy",
		"crisp", "daring", "deft", "eager", "early", "fair", "fleet", "fond", "free", "frosty", "gentle", "glad", "golden",
		"grand", "hardy", "hearty", "humble", "jolly", "keen", "kind", "lively", "loyal", "lucid", "lucky", "mellow",
		"merry", "mild", "misty", "neat", "nimble", "noble", "patient", "placid", "plucky", "polite", "proud", "quick",
		"quiet", "ready", "salty", "serene", "silver", "smart", "snug", "sober", "solid", "steady", "sunny", "swift",
		"tender", "tidy", "trim", "true", "upbeat", "vivid", "warm", "wise", "witty", "zesty"}
	vessels = []string{"anchor", "barge", "bark", "beacon", "bosun", "bowline", "brig", "buoy", "canoe", "capstan", "caravel",
		"catboat", "clipper", "coaster", "cog", "coracle", "corvette", "cutter", "dhow", "dinghy", "dock", "dory", "ferry",
		"frigate", "galley", "gig", "halyard", "harbour", "helm", "hoy", "hull", "jetty", "jib", "junk", "kayak",
		"keel", "ketch", "launch", "lighter", "lugger", "mast", "mooring", "packet", "pier", "pilot", "pinnace", "prow",
		"punt", "quay", "raft", "rudder", "sampan", "schooner", "scow", "shallop", "skiff", "slip", "sloop", "smack",
		"spar", "tender", "tiller", "trawler", "tug", "wharf", "wherry", "xebec", "yacht", "yawl"}
)

// randomName returns a name that is not taken, or else the ID.
func randomName(taken func(string) bool, id string) string {
	for range 20 {
		name := manners[rand.IntN(len(manners))] + "_" + vessels[rand.IntN(len(vessels))]
		if !taken(name) {
			return name
		}
	}
	return id[:12]
}
