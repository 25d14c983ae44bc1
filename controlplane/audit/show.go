package audit

import (
	"slices"
	"strconv"
	"strings"
)

// userKinds are the numbers of user_kind in Teleport's events, from 1. The log has
// words, which say more: all of ours that are not here are parts of the system.
var userKinds = [...]string{"human", "bot", "system"}

// Shown is a line of the log as it is given to readers of Teleport's events, with the
// number of its user_kind.
func Shown(line string) string {
	const name = `,"user_kind":"`
	before, after, found := strings.Cut(line, name)
	kind, rest, ends := strings.Cut(after, `"`)
	if !found || !ends {
		return line
	}
	n := slices.Index(userKinds[:], kind) + 1
	if n == 0 {
		n = len(userKinds)
	}
	return before + strings.TrimSuffix(name, `"`) + strconv.Itoa(n) + rest
}
