package main

import "github.com/sallyport/sallyport/cmd/internal/usage"

func (*loginCmd) Help() string {
	return usage.Examples("sally login --proxy=gw.example.com                # in the browser", "sally login --proxy=gw.example.com --auth=device  # by a code, typed in a browser elsewhere", "sally login --proxy=gw.example.com:8443 --user=alice --ca-pin=sha256:0123…", "sally login --proxy=gw.example.com --out=alice.id    # then: sally ls --proxy=gw.example.com --identity=alice.id",
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
	return usage.Examples("sally ssh web", "sally ssh root@web", "sally ssh -t root@web top", "sally ssh web tar -cz /etc > etc.tar.gz", "sally ssh -N -L 8080:localhost:80 web", "sally ssh -o SendEnv=TZ web") +
		"\n\nFlags stand before the command; all that follows it is the command's own. The exit code is the command's; 255 means that the connection was lost. " +
		"At the beginning of a line ~. disconnects and ~? tells of other escape sequences; --no-enable-escape-sequences switches them off."
}

func (*scpCmd) Help() string {
	return usage.Examples("sally scp report.pdf root@web:/srv/", "sally scp -r root@web:/var/log logs", "sally scp 'web:*.csv' .") +
		"\n\nA transfer whose connection breaks goes on where it was, on a new connection; --no-resume ends it instead."
}

func (*configCmd) Help() string {
	return usage.Examples("sally config >> ~/.ssh/config", "ssh root@web.gw.example.com          # then works with OpenSSH",
		"sally config --jump                  # for a machine without sally: by the gateway's jump server")
}

func (*awsCmd) Help() string {
	return usage.Examples("sally aws --app cloud s3 ls", "sally aws --app cloud --aws-role arn:aws:iam::123456789012:role/reader -- dynamodb list-tables", "sally apps login --aws-role reader cloud  # then: sally aws s3 ls", "sally aws --app cloud --exec terraform -- plan") +
		"\n\nThe program gets a port of this machine and keys that are good for this run of it alone; the agent signs its requests with credentials that never leave it (as a role that may ask STS or ECR for some of its own, those are yours, and outlive a lock). " +
		"Flags stand before the command; all that follows it is the program's own. The exit code is the program's."
}

func (*proxyAWSCmd) Help() string {
	return usage.Examples("sally proxy aws --app cloud", "sally proxy aws --app cloud --port 8001 --format powershell") +
		"\n\nPrograms use the port when they have the environment that is printed. Its keys are good until the proxy ends."
}

func (*proxyCmd) Help() string {
	return usage.Examples("sally proxy db --port=5433 orders", "sally proxy app --port=3000 grafana", "sally proxy tcp --port=7000 echo")
}

func (*kubeLsCmd) Help() string {
	return usage.Examples("sally kube ls", "sally kube ls env=prod", "sally kube ls --format=json")
}

func (*kubeLoginCmd) Help() string {
	return usage.Examples("sally kube login prod", "sally kube login prod -n web", "sally kube login --all", "kubectl get pods                     # then works with kubectl 1.22 and later")
}

func (*proxyKubeCmd) Help() string {
	return usage.Examples("sally proxy kube prod")
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

func (*proxyAppCmd) Help() string {
	return usage.Examples("sally proxy app grafana", "sally proxy app --port=3000 grafana     # then open http://127.0.0.1:3000") +
		"\n\nWhoever connects to the port acts as you; pages of other sites in your browser cannot. The name of a TCP service is taken too, as tsh does."
}

func (*appsCmd) Help() string {
	return usage.Examples("sally apps ls", "sally apps login grafana")
}

func (*appsLsCmd) Help() string {
	return usage.Examples("sally apps ls", "sally apps ls env=prod", "sally apps ls -v", "sally apps ls --format=json")
}

func (*appsLoginCmd) Help() string {
	return usage.Examples("sally apps login grafana    # prints the command for curl")
}

func (*appsLogoutCmd) Help() string {
	return usage.Examples("sally apps logout grafana", "sally apps logout          # all")
}

func (*appsConfigCmd) Help() string {
	return usage.Examples("sally apps config grafana", "$(sally apps config --format=curl grafana)/api/health", "sally apps config --format=json grafana")
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
