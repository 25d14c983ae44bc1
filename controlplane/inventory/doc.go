// Package inventory knows which hosts there are, what each may serve, and what
// is online, so that a name leads to one owner only.
//
// # Names
//
// A resource's name is one DNS label and belongs to the kind: db/orders and
// tcp/orders are two. The first agent that announces a name owns it. Others
// get it only with the same group, which must not be empty. An agent gives a
// name up by announcing without it. An owner that is only gone, however long,
// keeps its names until an administrator removes it (Remove): a name must not
// change hands because a machine was off.
//
// A node's name is made from its host name, with a suffix when it is taken,
// and stays the same from then on. A node can always be reached by its UUID
// too, so no resource may be called like a UUID.
//
// # Records
//
//	hosts/<id>                          who joined, as what, and what it may serve
//	names/<kind>/<name>                 the owners, and their group
//	resources/<agent>/<kind>/<name>     what an agent serves; changes together with names/
//	tags/<number>                       the agent's tag in PostgreSQL cancel keys
//	gateways/<id>                       with the gateway's lease
//	presence/<agent>/<gateway>          with the gateway's lease
//	removed/<id>                        a host that may still hold certificates
//
// # Presence
//
// A gateway reports the agents that are connected to it: the full set once,
// then changes, each report with the next number. What a gateway reported
// stands under its lease and goes when it stops reporting. A report that does
// not follow the last one is not applied; the gateway is asked for the full set.
package inventory
