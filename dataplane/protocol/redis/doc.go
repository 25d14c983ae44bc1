// Package redis serves Redis and Valkey databases to clients whose certificate
// the door has accepted: it reads as whom the client comes, asks whether it may,
// makes a connection that the server takes for that user and nobody else, and
// then relays commands and answers and records each command before the server
// has it whole.
//
//	client               Serve                    gate        database
//	  │ AUTH user …        │                        │             │
//	  ├───────────────────▶│  Open(user)            │             │
//	  │                    ├───────────────────────▶│             │
//	  │◀── -NOPERM ────────┤◀─ denied ──────────────┤             │
//	  │                    │◀─ Session ─────────────┤             │
//	  │                    │  TLS with CN = user                  │
//	  │                    ├─────────────────────────────────────▶│
//	  │                    │  ACL WHOAMI, else AUTH user …        │
//	  │                    ├─────────────────────────────────────▶│
//	  │◀── +OK ────────────┤◀─────────────────────────────────────┤
//	  │ GET key, …         │  event, then the same bytes          │
//	  ├───────────────────▶├─────────────────────────────────────▶│
//	  │◀───────────────────┤◀─────────────────────────────────────┤
//
// # As whom
//
// The user is the one of the client's first command: AUTH user password, or
// HELLO version AUTH user password. With any other first command, and with AUTH
// password, it is the server's user "default", as it would be without us. The
// connection stays that user's: AUTH and HELLO may name it again, RESET is
// refused unless it is "default", because it makes the session that user's.
//
// The server takes the user from the certificate (tls-auth-clients-user CN:
// Redis 8.6, Valkey 9); it needs no password (nopass: from Redis 6 on); or the
// client gives it, and the agent passes it on and keeps it nowhere. In the last
// two cases any certificate of the database CA is good for any user: then only
// the agent's roles tell users apart.
//
// # What is recorded
//
// Each command is db.session.query with its text in db_query as redis-cli takes
// it: words, or double quotes with escapes. Of an argument 4 KiB and of all 48 KiB
// are kept, of scripts 1 MiB; db_query_truncated says that there was more, and
// db_query_size how many bytes the arguments have. Passwords of AUTH, HELLO,
// CONFIG SET, ACL SETUSER, MIGRATE and SENTINEL are ****. A command that is
// refused has the code TDB02W and the reason in error. The AUTH or HELLO of the
// login has no event of its own: db.session.start says as whom it was. What a script runs, and what
// others publish, is the server's to log. Commands that the server's
// administrator has renamed are not known by their new names.
//
// # What is not passed on
//
// Replication (SYNC, PSYNC, REPLCONF); HTTP; another user; what is not exactly in
// the protocol, which servers take more freely than they document. Commands in a
// line of text reach the server as arrays. Pipelines, transactions,
// subscriptions, RESP3's pushes, MONITOR and blocking commands pass as they come.
//
// One resource is one server. A server of a Redis Cluster answers MOVED and ASK
// for keys that it does not have; these errors pass as they are, with addresses
// that lead past the gateway, so a cluster is of use only as far as one server has
// the keys.
//
// References are to the Redis documentation, "Redis serialization protocol
// specification", and to the functions of Redis 7 where it is silent.
package redis
