package main

import (
	"fmt"

	"github.com/alecthomas/kong"

	"github.com/sallyport/sallyport/cmd/internal/completion"
)

type completionCmd struct{ completion.Cmd }

// Run prints a script made from the grammar itself.
func (c *completionCmd) Run(p *program, k *kong.Kong) error {
	_, err := fmt.Fprint(p.stdout, c.Script(k, "sally", "tsh"))
	return err
}
