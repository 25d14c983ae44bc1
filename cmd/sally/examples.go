package main

import "github.com/sallyport/sallyport/cmd/internal/usage"

func (*loginCmd) Help() string {
	return usage.Examples("sally login --proxy=gw.example.com", "sally login --proxy=gw.example.com:8443 --user=alice --ca-pin=sha256:0123…", "sally login --proxy=gw.example.com --out=alice.id    # then: sally ls --proxy=gw.example.com --identity=alice.id",
		"sally login --password-file=FILE --otp=123456     # without a terminal")
}

func (*logoutCmd) Help() string {
	return usage.Examples("sally logout                          # everybody, everywhere", "sally logout --proxy=gw.example.com")
}

func (*statusCmd) Help() string {
	return usage.Examples("sally status", "sally status --format=json") +
		"\n\nThe exit code is 1 when nobody is logged in, or the certificate has ended."
}

func (*lsCmd) Help() string {
	return usage.Examples("sally ls", "sally ls env=prod,team=web", "sally ls --search=web --format=names", `sally ls --query='hasPrefix(name, "web-")'`, "sally ls -v")
}

func (*sshCmd) Help() string {
	return usage.Examples("sally ssh web", "sally ssh root@web", "sally ssh -t root@web top", "sally ssh web tar -cz /etc > etc.tar.gz", "sally ssh -o SendEnv=EDITOR web") +
		"\n\nFlags stand before the command; all that follows it is the command's own. The exit code is the command's; 255 means that the connection was lost. " +
		"At the beginning of a line ~. disconnects and ~? tells of other escape sequences; --no-enable-escape-sequences switches them off."
}

func (*configCmd) Help() string {
	return usage.Examples("sally config >> ~/.ssh/config", "ssh root@web.gw.example.com          # then works with OpenSSH")
}

func (*proxyCmd) Help() string {
	return usage.Examples("sally proxy db --port=5433 orders", "sally proxy tcp --port=7000 echo")
}

func (*proxySSHCmd) Help() string {
	return usage.Examples("ssh -o ProxyCommand='sally proxy ssh %r@%h:%p' root@web") + "\n\nsally config writes this for all nodes."
}

func (*proxyDBCmd) Help() string {
	return usage.Examples("sally proxy db orders", "sally proxy db --port=5433 --db-user=reader --db-name=shop orders") +
		"\n\nFor clients that do not send a server name, or cannot use client certificates. Whoever connects to the port acts as you."
}

func (*proxyTCPCmd) Help() string {
	return usage.Examples("sally proxy tcp echo", "sally proxy tcp --port=7000 echo", "sally proxy tcp --stdio echo") +
		"\n\nWhoever connects to the port acts as you."
}

func (*dbCmd) Help() string {
	return usage.Examples("sally db ls", "sally db connect --db-user=reader --db-name=shop orders")
}

func (*dbLsCmd) Help() string {
	return usage.Examples("sally db ls", "sally db ls env=prod", "sally db ls -v", "sally db ls --format=json")
}

func (*dbLoginCmd) Help() string {
	return usage.Examples("sally db login --db-user=reader --db-name=shop orders", "psql service=gw.example.com-orders    # then works with the system's psql")
}

func (*dbLogoutCmd) Help() string {
	return usage.Examples("sally db logout orders", "sally db logout                       # all databases")
}

func (*dbConnectCmd) Help() string {
	return usage.Examples("sally db connect --db-user=reader --db-name=shop orders", "sally db connect --db-user=reader orders -- -c 'select 1'") +
		"\n\nThe exit code is psql's."
}

func (*dbConfigCmd) Help() string {
	return usage.Examples("sally db config orders", "sally db config --format=cmd --db-user=reader --db-name=shop orders", "sally db config --format=json orders")
}

func (*dbEnvCmd) Help() string {
	return usage.Examples(`eval "$(sally db env --db-user=reader --db-name=shop orders)"`, "sally db env --format=json orders")
}

func (*tcpCmd) Help() string { return usage.Examples("sally tcp ls") }

func (*tcpLsCmd) Help() string {
	return usage.Examples("sally tcp ls", "sally tcp ls env=prod --format=json")
}

func (*clustersCmd) Help() string {
	return usage.Examples("sally clusters", "sally clusters --format=json")
}

func (*envCmd) Help() string {
	return usage.Examples(`eval "$(sally env)"                   # this terminal stays with the cluster`, `eval "$(sally env --unset)"`)
}

func (*versionCmd) Help() string {
	return usage.Examples("sally version", "sally version --client --format=json")
}

func (*completionCmd) Help() string {
	return usage.Examples("source <(sally completion bash)       # in ~/.bashrc", "source <(sally completion zsh)        # in ~/.zshrc",
		"sally completion fish > ~/.config/fish/completions/sally.fish")
}
