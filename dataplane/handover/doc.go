// Package handover moves a running process's work into a new process, so that
// no connection notices an upgrade.
//
// What moves is divided into parts. The old process has a Giver for each, the
// new one a Taker of the same name. Parts move in stages: the slow ones first,
// while everything else goes on working; the loops last, because they stand
// still from the moment in which they are frozen until the commit.
//
//	old process                                       new process
//	Upgrade ──────────── starts ────────────────────▶ Inherited
//	Giver.Copy     ───── records, descriptors ──────▶ Taker.Take
//	Giver.Freeze   ───── the rest ──────────────────▶ Taker.Take
//	               ◀──── complete ────────────────── Taker.Complete
//	               ◀──── ready ───────────────────── all stages are complete
//	               ───── commit ────────────────────▶
//	Giver.Leave                                       Taker.Start
//
// Until the commit the old process keeps its own copy of every descriptor, and
// whatever goes wrong means: the new process is killed, its death is waited
// for, and Giver.Thaw goes on as if nothing had been. docs/handover.md says
// what survives and how.
package handover
