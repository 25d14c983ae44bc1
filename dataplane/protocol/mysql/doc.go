// Package mysql serves MySQL and MariaDB databases to clients whose certificate
// the door has accepted: it greets as the server does, reads what the client
// wants, asks whether it may, logs in to the real server with a certificate in
// place of the client's password, and then relays packets and records each
// command before the server sees it.
//
//	client               Serve                    gate        database
//	  │                    │  TCP                                 │
//	  │                    │◀─────────────────────────── greeting ┤
//	  │◀── greeting ───────┤  with the server's version and thread id
//	  │ HandshakeResponse  │                        │             │
//	  ├───────────────────▶│  Open(user, database)  │             │
//	  │                    ├───────────────────────▶│             │
//	  │◀── ERR ────────────┤◀─ denied ──────────────┤             │
//	  │                    │◀─ Session ─────────────┤             │
//	  │                    │  SSLRequest, TLS with CN = user      │
//	  │                    ├─────────────────────────────────────▶│
//	  │                    │  HandshakeResponse, no password      │
//	  │                    ├─────────────────────────────────────▶│
//	  │◀── OK ─────────────┤◀─────────────────────────────────────┤
//	  │ COM_QUERY, …       │  event, then the same bytes          │
//	  ├───────────────────▶├─────────────────────────────────────▶│
//	  │◀───────────────────┤◀─────────────────────────────────────┤
//
// The server speaks first in this protocol, and clients take two things from
// its greeting that only the real server has: its version, and the thread id
// that Ctrl-C kills by ("KILL QUERY id", on another connection). So the server
// is asked for its greeting before the client is known. Type ahead says how that
// is bounded; beyond it the client gets what the server said last.
//
// A password is of no use here: whatever the client offers is taken, by any
// plugin, because the door has proved who it is.
//
// # What is recorded
//
// COM_QUERY is db.session.query with its exact text in db_query, as package
// database writes texts; COM_STMT_PREPARE the same in query, with a
// statement_number that later events of the statement have too, beside the
// server's statement_id. COM_STMT_EXECUTE has its parameters by position,
// numbers and times as text. Parameters that cannot be read, because the
// statement is not known yet, or the server has not yet accepted an EXECUTE with
// their types, are parameters_raw, base64; so are those for the statement that was
// prepared last, by MariaDB's name for it (statement_id 4294967295).
//
// # What is not passed on
//
// COM_CHANGE_USER, which would be another user than was authorized; replication;
// commands that no release knows; sequences of packets that do not count on;
// commands that are too long to be recorded; parameters of types that servers
// read each in its own way; values sent before the server has given the statement
// that they are for; a server's request for a file of the client that no
// LOAD DATA LOCAL of the client has named; compression and query attributes, which
// are not offered.
//
// References are to the MySQL documentation, "Client/Server Protocol", and to the
// MariaDB knowledge base where it differs.
package mysql
