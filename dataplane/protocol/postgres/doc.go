// Package postgres serves PostgreSQL databases to clients whose certificate the
// door has accepted: it reads what the client wants, asks whether it may, logs
// in to the real server with a certificate in place of the client's, and then
// relays messages and records each statement before the server sees it.
//
//	client               Serve                    gate        database
//	  │ StartupMessage     │                        │             │
//	  ├───────────────────▶│  Open(user, database)  │             │
//	  │                    ├───────────────────────▶│             │
//	  │◀── ErrorResponse ──┤◀─ denied ──────────────┤             │
//	  │                    │◀─ Session ─────────────┤             │
//	  │                    │  SSLRequest, TLS with CN = user      │
//	  │                    ├─────────────────────────────────────▶│
//	  │                    │  StartupMessage                      │
//	  │                    ├─────────────────────────────────────▶│
//	  │ AuthenticationOk … BackendKeyData (ours) … ReadyForQuery  │
//	  │◀───────────────────┤◀─────────────────────────────────────┤
//	  │ Query, Parse, Bind │  event, then the same bytes          │
//	  ├───────────────────▶├─────────────────────────────────────▶│
//	  │◀───────────────────┤◀─────────────────────────────────────┤
//
// # What is recorded
//
// The start has what the client sends to the server with it beside user and
// database, as startup_parameters: a list of name=value, in the form of Bind's
// parameters.
//
// A simple query is db.session.query with its exact text in db_query. A text
// that the log writes as more than 48 KiB is spread over several events, in order, numbered by
// db_query_part from 1 and with the whole length in db_query_size. A text
// longer than Bounds.Statement is cut there; the last event then says so in
// db_query_truncated, and all of them carry db_query_sha256, over the whole
// text. Text that is not UTF-8 is written with \xNN for each foreign byte and
// \\ for each backslash, and db_query_escaped is true: no byte is lost. Parse
// does the same with the field query.
//
// Bind has its parameters, by position: those in binary format, or not UTF-8,
// are base64 and their positions are in base64_parameters; NULLs are empty and
// in null_parameters. At most 4 KiB of one and 48 KiB of all, as the log writes them, are kept;
// parameters_truncated says when more were sent. A function call has
// its arguments in the same form.
//
// # What is not passed on
//
// Names of more than 63 bytes, be it of users, databases, statements or portals
// (15 for the last two where they are not ASCII), which servers cut and so take for
// another name than the one that was authorized or recorded; what is recorded while
// the audit log takes no more events; replication; bytes that are not a
// message of the protocol; messages that are too long to be recorded.
//
// References are to the PostgreSQL documentation, chapter "Frontend/Backend
// Protocol", and to the server's source by the name of the function.
package postgres
