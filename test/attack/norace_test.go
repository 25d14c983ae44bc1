//go:build !race

package attack

// underRace says that the programs are to be built with the race detector too.
const underRace = false
