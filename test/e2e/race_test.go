//go:build race

package e2e

// underRace says that the programs are to be built with the race detector too.
const underRace = true
