// Package webapp serves applications to browsers, at the gateway: TLS of
// <app>.<cluster> ends here, and this package acts as the browser's client
// towards the agent.
//
//	browser ─▶ whose host is it (421) ─▶ who sends this (403) ─▶ session? ──▶ line ─▶ agent's door ─▶ application
//	                                                               │ none
//	                                                               └─▶ login at the cluster's origin ─▶ /.sallyport/callback
//
// A session is a cookie of the application's own host. What it is worth auth says
// (Desk); here are the key and the certificate made for it, in memory, and its
// lines: connections to the agent, each for one address of the browser. Nothing is
// kept that a restart would lose.
//
// Applications below one cluster are of one site, so neither SameSite nor a name
// keeps them apart: what a page of another origin makes a browser send is refused
// here, but for following a link.
//
// Invariant: before auth has vouched for a cookie, no byte of a request's body is
// read, no connection to an agent is made, and the server's deadlines hold.
package webapp
