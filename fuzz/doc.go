// Package fuzz drives the borders that a stranger can reach, each against an
// oracle: a slow twin, a specification's table, or a rule that must hold
// whatever comes. Tests that need a package's inside stand beside it instead.
package fuzz
