package main

import (
	"slices"
	"strings"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/cmd/internal/fail"
	"github.com/sallyport/sallyport/cmd/internal/output"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
)

type dbCmd struct {
	Ls      dbLsCmd      `cmd:"" help:"List databases that you may reach."`
	Login   dbLoginCmd   `cmd:"" help:"Write what stock clients need to reach a database."`
	Logout  dbLogoutCmd  `cmd:"" help:"Remove it again."`
	Connect dbConnectCmd `cmd:"" help:"Start psql, mariadb, mysql or redis-cli on a database."`
	Config  dbConfigCmd  `cmd:"" help:"Print connection settings."`
	Env     dbEnvCmd     `cmd:"" help:"Print environment variables for psql and libpq."`
}

// databaseFlags say as whom and where.
type databaseFlags struct {
	User   string `name:"db-user" short:"u" placeholder:"NAME" help:"Database user; without, the only one that you may be."`
	DBName string `name:"db-name" short:"n" placeholder:"NAME" help:"Database in the server; without, the only one that you may open."`

	// Of tsh's flags these are not served.
	Roles  string `name:"db-roles" short:"r" hidden:""`
	Labels string `name:"labels" hidden:""`
	Query  string `name:"query" hidden:""`
}

func (f databaseFlags) unserved() error {
	switch {
	case f.Roles != "":
		return problem(errInvalid, "this version makes no database users, so --db-roles has no meaning", "name an existing user with --db-user")
	case f.Labels != "" || f.Query != "":
		return problem(errInvalid, "this version does not choose a database by --labels or --query", "name it; sally db ls shows the databases")
	}
	return nil
}

type dbLsCmd struct {
	filter
	Format  string `name:"format" short:"f" enum:"text,json,yaml" default:"text" placeholder:"FORMAT" help:"text, json or yaml."`
	Verbose bool   `name:"verbose" short:"v" help:"Show protocol and address, and labels uncut."`
}

type databaseJSON struct {
	Kind     string       `json:"kind"`
	Version  string       `json:"version"`
	Metadata metadataJSON `json:"metadata"`
	Spec     struct {
		Protocol string `json:"protocol"`
		URI      string `json:"uri"`
	} `json:"spec"`
	Users struct {
		Allowed []string `json:"allowed"`
	} `json:"users"`
}

// Run lists databases.
func (c *dbLsCmd) Run(p *program) error {
	list, err := p.listed(sallyport.KindDatabase, c.filter)
	if err != nil {
		return err
	}
	if c.Format != "text" {
		return output.Write(p.stdout, c.Format, databasesJSON(list))
	}
	f, err := p.selected()
	if err != nil {
		return err
	}
	active := p.databasesOf(f)
	header := []string{"Name", "Description", "Allowed Users", "Labels", "Connect"}
	if c.Verbose {
		header = []string{"Name", "Description", "Protocol", "Type", "URI", "Allowed Users", "Labels", "Connect"}
	}
	var rows [][]string
	for _, a := range list {
		r, name, connect := a.GetResource(), a.GetResource().GetName(), ""
		if slices.Contains(active, name) {
			name, connect = "> "+name, "sally db connect "+name
		}
		row := []string{name, fail.Clean(r.GetDescription()), "[" + strings.Join(a.GetDatabaseUsers(), " ") + "]", labels(r.GetLabels(), c.Verbose), connect}
		if c.Verbose {
			row = slices.Insert(row, 2, r.GetProtocol(), selfHosted, r.GetAddress())
		}
		rows = append(rows, row)
	}
	return p.table(c.Verbose, header, rows)
}

// selfHosted is the type of all databases that agents reach by themselves.
const selfHosted = "self-hosted"

func databasesJSON(list []*sallyportv1.AccessibleResource) []databaseJSON {
	out := []databaseJSON{}
	for _, a := range list {
		r := a.GetResource()
		j := databaseJSON{Kind: "db", Version: "v3", Metadata: metadataJSON{Name: r.GetName(), Description: r.GetDescription(), Labels: r.GetLabels()}}
		j.Spec.Protocol, j.Spec.URI = r.GetProtocol(), r.GetAddress()
		j.Users.Allowed = a.GetDatabaseUsers()
		out = append(out, j)
	}
	return out
}
