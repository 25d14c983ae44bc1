// Package websession keeps who is logged in with a browser: sessions, the
// one-time codes by which a session reaches a program or an application, and
// the requests of programs whose user types a code elsewhere. It decides
// nothing about people: package api asks locks and roles.
//
//	token of a cookie  = base64url(hash of user (8) ‖ id (16) ‖ secret (32))
//	code               = base64url(32 random bytes)
//	code of a device   = base64url(user code (8) ‖ secret (32))
//
// # Records
//
//	websessions/<hash of user>/<id>        one browser; also its applications
//	webcodes/<hash of the code>            what the code is good for
//	webdevices/<user code>                 a program that waits
//	webdevice-sources/<hash>/<slot>        of which source a program waits
//
// All end with a lease, and are judged by their own times before that. Secrets
// are in the store as hashes: who reads it cannot use it to log in.
package websession
