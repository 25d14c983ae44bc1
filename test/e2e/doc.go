// Package e2e runs the programs as users run them: built, started as processes,
// with real OpenSSH, psql and PostgreSQL at the other ends.
package e2e
