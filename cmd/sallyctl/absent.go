package main

import "github.com/sallyport/sallyport/cmd/internal/usage"

// absent are tctl's commands that are not here.
func absent() usage.Absent {
	const (
		documents   = "roles, users and locks are documents: sallyctl get, sallyctl create"
		noRequests  = "there are no access requests; change the user's roles: sallyctl create --force user.yaml"
		notRecorded = "sessions are not recorded; what happened in them is in the audit log: sallyctl audit search"
		resources   = "agents and gateways: sallyctl nodes ls; what one may reach: "
		noBots      = "for programs, write a login to a file: sally login --out=FILE"
		noSSO       = "users are local: sallyctl users add"
		join        = "make a token, and start the agent with it: sallyctl tokens add"
	)
	return usage.Absent{
		"access":                "sallyctl get roles",
		"acl":                   documents,
		"apps":                  resources + "sally apps ls",
		"auth crl":              "shut somebody out: sallyctl lock --user=NAME",
		"auth ls":               "sallyctl status",
		"bots":                  noBots,
		"db":                    resources + "sally db ls",
		"devices":               "logins are not bound to devices",
		"edit":                  "sallyctl get KIND/NAME > FILE, then sallyctl create --force FILE",
		"inventory":             "sallyctl nodes ls",
		"kube":                  resources + "sally kube ls",
		"locks":                 "sallyctl get locks",
		"nodes add":             join,
		"proxy":                 "sallyctl nodes ls",
		"recordings":            notRecorded,
		"request":               noRequests,
		"requests":              noRequests,
		"saml":                  noSSO,
		"sso":                   noSSO,
		"tokens configure-kube": join,
		"top":                   "metrics are in Prometheus' format: metrics.listen",
		"update":                "sallyctl create --force FILE",
		"users update":          "sallyctl get user/NAME > FILE, then sallyctl create --force FILE",
		"workload-identity":     noBots,
	}
}
