//go:build !race

package crash

// underRace says that the program is to be built with the race detector too.
const underRace = false
