package main

import "github.com/sallyport/sallyport/cmd/internal/usage"

// absent are tsh's commands that are not here.
func absent() usage.Absent {
	const (
		notRecorded = "sessions are not recorded; what happened in them is in the audit log: sallyctl audit search"
		noRequests  = "there are no access requests; an administrator changes a user's roles: sallyctl create --force user.yaml"
		noJoining   = "a session cannot be joined"
		noDevices   = "a one-time code is set up with the password, by the link of: sallyctl users reset NAME"
		noBots      = "for programs, write a login to a file: sally login --out=FILE"
		noCloud     = "of the clouds there is AWS: sally aws"
		noTrust     = "logins are not bound to devices"
	)
	return usage.Absent{
		"az":                noCloud,
		"bench":             "make bench, in the source",
		"db exec":           "sally db connect, or a client of the database through sally proxy db",
		"device":            noTrust,
		"gcloud":            noCloud,
		"git":               "a Git server is reached as a TCP service or by SSH: sally tcp ls, sally ls",
		"gsutil":            noCloud,
		"headless":          "log in with a code that is typed on another machine: sally login --auth=device",
		"join":              noJoining,
		"kube exec":         "sally kube login CLUSTER, then kubectl exec",
		"kube join":         noJoining,
		"kube sessions":     notRecorded,
		"mcp":               "an MCP server is reached as a web application: sally apps ls",
		"mfa":               noDevices,
		"play":              notRecorded,
		"proxy azure":       noCloud,
		"proxy gcloud":      noCloud,
		"proxy mcp":         "sally proxy app",
		"puttyconfig":       "sally config --help",
		"recordings":        notRecorded,
		"request":           noRequests,
		"requests":          noRequests,
		"sessions":          notRecorded,
		"svid":              noBots,
		"vnet":              "listen on this machine instead: sally proxy --help",
		"workload-identity": noBots,
	}
}
