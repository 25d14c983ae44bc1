//go:build !race

package upgrade

// underRace says that the programs are to be built with the race detector too.
const underRace = false
