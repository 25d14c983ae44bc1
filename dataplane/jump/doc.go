// Package jump is the gateway's SSH jump server: it brings clients that speak
// plain SSH to the cluster's nodes, and nowhere else.
//
//	ssh -J gateway node
//
//	client ══ SSH, user certificate ══▶ Serve ── direct-tcpip ─▶ node's name ─▶ Reach ══ TLS ══▶ agent's door
//	   └──────── another SSH connection, inside the channel, end to end ───────────────────────▶ login
//
// Two things are kept apart. Who may pass here is decided here: somebody with a
// user certificate of the cluster, not locked, not expired, at the address that
// it is bound to. What somebody may do on a node is decided at the node, by the
// SSH connection inside, of which nothing but ciphertext passes here; so a
// person who may jump has gained what any user certificate gains at the port.
//
// There is no login here, no shell, no other channel and no other request: what
// is not in the table of rules is refused. A destination is a name, looked up
// among the nodes whose agents are connected: no address is ever dialed.
package jump
