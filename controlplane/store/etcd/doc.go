// Package etcd keeps the store in etcd v3: embedded in this process, or an
// external cluster. Both go through the same client code, and all keys lie
// under one prefix, so a snapshot of one can become the other.
//
// The embedded server listens on two Unix sockets in its own directory (0700)
// and is used in process; no port is opened. A lock file with the owner's
// process id keeps a second process out of the directory.
package etcd
