// Package upgrade upgrades sallyport while real clients use it, and while
// everything goes wrong that can: no client may notice.
//
// SALLYPORT_UPGRADES says how many upgrades each of the tests with clients does;
// without it there are three, so that make test stays short. With
// SALLYPORT_UPGRADE_FAILURES=all every failpoint of the hand-over is tried in every
// way; without it each in one.
package upgrade
