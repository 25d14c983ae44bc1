// Package attack breaks in: it starts the real programs and does to them, over
// loopback only, what a stranger, a user without rights, or a stolen identity
// would. Rows are those of the threat list; a test's name begins with its row.
package attack
