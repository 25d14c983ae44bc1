package main

import "github.com/sallyport/sallyport/cmd/internal/usage"

func (*statusCmd) Help() string {
	return usage.Examples("sallyctl status", "sallyctl --data-dir=/var/lib/sallyport status", "sallyctl --proxy=gw.example.com status --format=json")
}

func (*usersAddCmd) Help() string {
	return usage.Examples("sallyctl users add alice --roles=access --logins=alice,root", "sallyctl users add bob --roles=dba --db-users=reader --db-names=shop --ttl=24h")
}

func (*usersLsCmd) Help() string {
	return usage.Examples("sallyctl users ls", "sallyctl users ls --format=json")
}

func (*usersRmCmd) Help() string { return usage.Examples("sallyctl users rm alice") }

func (*usersResetCmd) Help() string { return usage.Examples("sallyctl users reset alice") }

func (*tokensAddCmd) Help() string {
	return usage.Examples("sallyctl tokens add", "sallyctl tokens add --type=gateway --ttl=1h", "sallyctl tokens add --allow-kinds=db --allow-names='orders-*' --allow-labels=env=prod --single-use")
}

func (*tokensLsCmd) Help() string {
	return usage.Examples("sallyctl tokens ls", "sallyctl tokens ls --format=json")
}

func (*tokensRmCmd) Help() string { return usage.Examples("sallyctl tokens rm NAME") }

func (*getCmd) Help() string {
	return usage.Examples("sallyctl get roles", "sallyctl get role/access > access.yaml", "sallyctl get users --format=json")
}

func (*createCmd) Help() string {
	return usage.Examples("sallyctl create role.yaml", "sallyctl create --force role.yaml      # replace what exists", "sallyctl create - < roles.yaml")
}

func (*lockCmd) Help() string {
	return usage.Examples("sallyctl lock --user=alice --message=ticket-4711 --ttl=10h", "sallyctl lock --login=root --server-id=ID", "sallyctl get locks")
}

func (*rmCmd) Help() string {
	return usage.Examples("sallyctl rm role/dev", "sallyctl rm lock/alice", "sallyctl rm node/ID      # as sallyctl nodes rm ID")
}

func (*nodesCmd) Help() string { return usage.Examples("sallyctl nodes ls") }

func (*nodesLsCmd) Help() string {
	return usage.Examples("sallyctl nodes ls", "sallyctl nodes ls --all                # also those that are away, and gateways", "sallyctl nodes ls --format=json")
}

func (*nodesRmCmd) Help() string {
	return usage.Examples("sallyctl nodes rm ID", "sallyctl nodes rm --force ID           # also when it is online: a host that is in wrong hands") +
		"\n\nA host that was removed keeps certificates that have not ended, but they are good for nothing: gateways end its tunnel and refuse it, agents refuse a gateway, auth refuses both. " +
		"Its names are free. Join tokens are not touched: sallyctl tokens ls shows those by which it could join again as a new host."
}

func (*authExportCmd) Help() string {
	return usage.Examples("sallyctl auth export --type=user > trusted_user_ca_keys", "sallyctl auth export --type=tls-host > host-ca.pem")
}

func (*authSignCmd) Help() string {
	return usage.Examples("sallyctl auth sign --format=db --host=db1.internal,10.0.0.5 --out=server")
}

func (*auditSearchCmd) Help() string {
	return usage.Examples("sallyctl audit search", "sallyctl audit search --last=1h --event=session.start,db.session.start",
		"sallyctl audit search --to=2026-02-28T15:00:00Z --last=30m --limit=10000")
}

func (*auditVerifyCmd) Help() string { return usage.Examples("sallyctl audit verify") }

func (*versionCmd) Help() string {
	return usage.Examples("sallyctl version", "sallyctl version --format=json")
}

func (*completionCmd) Help() string {
	return usage.Examples("source <(sallyctl completion bash)       # in ~/.bashrc", "source <(sallyctl completion zsh)        # in ~/.zshrc",
		"sallyctl completion fish > ~/.config/fish/completions/sallyctl.fish")
}
