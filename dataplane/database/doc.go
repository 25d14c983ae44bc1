// Package database is what the protocols of databases share: the TLS
// connection from an agent to a server with a certificate for the database
// user, what a client's direction is read into, how the two directions of a session
// begin and end, and how statements and their values stand in audit events.
package database
