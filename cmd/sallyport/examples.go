package main

import "github.com/sallyport/sallyport/cmd/internal/usage"

func (*startCmd) Help() string {
	return usage.Examples("sallyport start", "sallyport start --config=/etc/sallyport.yaml", "sallyport start --check               # only look for faults")
}

func (*demoCmd) Help() string {
	return usage.Examples("sallyport demo", "sallyport demo --listen=127.0.0.1:9443 --data=/tmp/demo")
}

func (*reloadCmd) Help() string {
	return usage.Examples("sallyport reload", "sallyport reload --config=/etc/sallyport.yaml",
		"sallyport reload --format=json              # what has changed, and what has no effect yet")
}

func (*statusCmd) Help() string { return usage.Examples("sallyport status") }

func (*completionCmd) Help() string {
	return usage.Examples("source <(sallyport completion bash)   # in ~/.bashrc", "source <(sallyport completion zsh)    # in ~/.zshrc",
		"sallyport completion fish             # into ~/.config/fish/completions/sallyport.fish")
}
