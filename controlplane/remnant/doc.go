// Package remnant lets the processes of one agent share its audit spool: the
// one that owns it, and those that an upgrade left behind until their sessions
// have ended.
//
// A spool has one writer. The owner opens it under the directory's lock and
// serves a Unix socket; a remnant's events go there. Each process has a Spool:
//
//	             Open          Start             Yield
//	(none) ────────────▶ open ───────▶ working ─────────▶ waiting ──Follow──▶ following
//	                      ▲                                  │                (a remnant)
//	                      └──────────── Open: the way back ──┘
//
//	open       events go to the spool; in a new process before the commit
//	working    and auth gets them, and remnants are served
//	waiting    events wait in memory, in order
//	following  events go to whoever serves the socket
//
// Emit means the same in all of these. Events are answered in the order in
// which they were taken, and only what was not answered is sent again on the
// next connection: an owner that leaves in order answers all that it took, so
// each event is in the spool once. Behind an owner that was killed an event may
// be there twice, with the same uid.
//
// When nobody has taken events for longer than Config.Patience, a remnant's
// sessions are as with a full spool: what begins is refused, and what ends is
// kept for the next owner as long as there is room.
package remnant
