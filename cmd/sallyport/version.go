package main

import (
	"fmt"
	"runtime"

	"github.com/sallyport/sallyport/cmd/internal/output"
	"github.com/sallyport/sallyport/cmd/internal/usage"
	"github.com/sallyport/sallyport/dataplane/handover"
)

type versionCmd struct {
	Format string `name:"format" short:"f" enum:"text,json,yaml" default:"text" help:"text, json or yaml."`
}

// Help shows examples.
func (versionCmd) Help() string {
	return usage.Examples("sallyport version", "sallyport version --format=json     # and which records of an upgrade it reads")
}

// versionReport is the version for programs: an upgrade asks for it.
type versionReport struct {
	Version  string      `json:"version"`
	Go       string      `json:"go"`
	Handover generations `json:"handover"`
	Canary   uint32      `json:"canary"` // generation of what it says as a canary; 0: it cannot be one
}

// canaryGeneration is new when a record would be misread by the one before.
const canaryGeneration = 1

// generations of records that a program reads and writes; 0 for none.
type generations struct {
	Oldest uint32 `json:"oldest"`
	Newest uint32 `json:"newest"`
}

func ownVersion() versionReport {
	return versionReport{Version: version, Go: runtime.Version(), Handover: generations{handover.OldestGeneration, handover.NewestGeneration}, Canary: canaryGeneration}
}

// Run prints the version.
func (c versionCmd) Run(p *program) error {
	if c.Format != "text" {
		return output.Write(p.stdout, c.Format, ownVersion())
	}
	_, err := fmt.Fprintf(p.stdout, "Sallyport %s %s\n", version, runtime.Version())
	return err
}
