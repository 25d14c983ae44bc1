//go:build race

package ssh

func raceEnabled() bool { return true }
