package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/cmd/internal/fail"
	"github.com/sallyport/sallyport/cmd/internal/output"
	"github.com/sallyport/sallyport/cmd/internal/profile"
	"github.com/sallyport/sallyport/cmd/internal/shell"
)

type appsCmd struct {
	Ls     appsLsCmd     `cmd:"" help:"List web applications that you may reach."`
	Login  appsLoginCmd  `cmd:"" help:"Write what curl and its like need to reach an application."`
	Logout appsLogoutCmd `cmd:"" help:"Remove it again."`
	Config appsConfigCmd `cmd:"" help:"Print an application's address and files."`
}

type appsLsCmd struct {
	filter
	Verbose bool   `name:"verbose" short:"v" help:"Show where the agent reaches it, and labels uncut."`
	Format  string `name:"format" short:"f" enum:"text,json,yaml" default:"text" placeholder:"FORMAT" help:"text, json or yaml."`
}

type appJSON struct {
	Kind     string       `json:"kind"`
	Version  string       `json:"version"`
	Metadata metadataJSON `json:"metadata"`
	Spec     struct {
		URI        string `json:"uri"`
		PublicAddr string `json:"public_addr"`
	} `json:"spec"`
}

// Run lists applications.
func (c *appsLsCmd) Run(p *program) error {
	list, err := p.listed(sallyport.KindApp, c.filter)
	if err != nil {
		return err
	}
	f, err := p.selected()
	if err != nil {
		return err
	}
	active := p.appsOf(f)
	out := []appJSON{}
	var rows [][]string
	for _, a := range list {
		r := a.GetResource()
		public := alpn.ServerName(string(sallyport.KindApp), r.GetName(), f.Cluster)
		j := appJSON{Kind: "app", Version: "v3", Metadata: metadataJSON{Name: r.GetName(), Description: r.GetDescription(), Labels: r.GetLabels()}}
		j.Spec.URI, j.Spec.PublicAddr = r.GetAddress(), public
		out = append(out, j)
		name := r.GetName()
		if slices.Contains(active, name) {
			name = "> " + name
		}
		row := []string{name, fail.Clean(r.GetDescription()), appType(r.GetProtocol()), public, labels(r.GetLabels(), c.Verbose)}
		if c.Verbose {
			row = slices.Insert(row, 4, fail.Clean(r.GetAddress()))
		}
		rows = append(rows, row)
	}
	if c.Format != "text" {
		return output.Write(p.stdout, c.Format, out)
	}
	header := []string{"Application", "Description", "Type", "Public Address", "Labels"}
	if c.Verbose {
		header = slices.Insert(header, 4, "URI")
	}
	return p.table(c.Verbose, header, rows)
}

func appType(protocol string) string {
	if protocol == sallyport.ProtocolAWS {
		return "AWS"
	}
	return "HTTP"
}

// application is one application as curl and its like reach it.
type application struct {
	cred          *credentials
	name          string
	protocol      string // ProtocolAWS, or ""; also when auth is away
	host          string // the server name
	port          string
	connect       string // host:port to connect to, when the name is not in the DNS
	ca, cert, key string
}

func (p *program) application(name string) (*application, error) {
	name, err := p.applicationName(name)
	if err != nil {
		return nil, err
	}
	cred, found, err := p.reachable(sallyport.KindApp, name)
	if err != nil {
		return nil, err
	}
	a := &application{
		cred: cred, name: name, protocol: found.GetResource().GetProtocol(), host: alpn.ServerName(string(sallyport.KindApp), name, cred.Profile.Cluster),
		ca: p.home.CAsPath(cred.Profile), cert: applicationFile(p.home, cred.Profile, name, ".crt"), key: applicationFile(p.home, cred.Profile, name, ".key"),
	}
	proxyHost, port, err := net.SplitHostPort(cred.Profile.WebProxyAddr)
	if err != nil {
		return nil, err
	}
	a.port = port
	if addr := hostaddr(p, a.host, proxyHost); addr != "" {
		a.connect = net.JoinHostPort(addr, port)
	}
	return a, nil
}

// applicationName is the one that was named, else the one that the user has
// logged in to.
func (p *program) applicationName(name string) (string, error) {
	if name != "" {
		if !alpn.ValidLabel(name) {
			return "", problem(errInvalid, fmt.Sprintf("%q cannot be an application's name here", name), "sally apps ls")
		}
		return name, nil
	}
	f, err := p.selected()
	if err != nil {
		return "", err
	}
	switch in := p.appsOf(f); len(in) {
	case 0:
		return "", problem(errInvalid, "no application is named, and you have logged in to none", "sally apps ls shows them")
	case 1:
		return in[0], nil
	default:
		return "", problem(errInvalid, "no application is named, and you have logged in to "+strings.Join(in, ", "), "name one")
	}
}

// uri is what a client asks for.
func (a *application) uri() string {
	if a.port == "443" {
		return "https://" + a.host
	}
	return "https://" + net.JoinHostPort(a.host, a.port)
}

// curl is the command, to which a path may be added, of words as the reader has them.
func (a *application) curl(word func(string) string) string {
	words := []string{"curl", "--cacert", a.ca, "--cert", curlCert(a.cert), "--key", a.key}
	if a.connect != "" {
		words = append(words, "--connect-to", net.JoinHostPort(a.host, a.port)+":"+a.connect)
	}
	words = append(words, a.uri())
	for i, w := range words {
		words[i] = word(w)
	}
	return strings.Join(words, " ")
}

// substituted is a word of a command for $(…), which takes a backslash for itself,
// and quotes too: what needs them is for people to copy.
func substituted(w string) string {
	if bare := strings.ReplaceAll(w, `\`, ""); shell.Word(bare) == bare {
		return w
	}
	return shell.Word(w)
}

// curlCert is a file as curl's --cert has it: a password follows the first colon, as
// in the directory of a gateway that has an IPv6 address, unless a backslash stands
// before it.
func curlCert(file string) string {
	return strings.NewReplacer(`\`, `\\`, ":", `\:`).Replace(file)
}

func applicationFile(home profile.Dir, f profile.Profile, name, suffix string) string {
	return filepath.Join(home.AppDir(f), name+suffix)
}

// appsOf are those that the user has logged in to.
func (p *program) appsOf(f profile.Profile) []string {
	files, err := os.ReadDir(p.home.AppDir(f))
	if err != nil {
		return nil
	}
	var out []string
	for _, file := range files {
		if name, ok := strings.CutSuffix(file.Name(), ".crt"); ok {
			out = append(out, name)
		}
	}
	return out
}

// appFiles puts the login's certificate and key where curl is told to look.
func (p *program) appFiles(a *application) error {
	return p.home.Locked(func() error {
		for from, to := range map[string]string{p.home.KeyPath(a.cred.Profile, ".crt"): a.cert, p.home.KeyPath(a.cred.Profile, ".key"): a.key} {
			b, err := os.ReadFile(from)
			if err != nil {
				return err
			}
			if err := profile.WriteFile(to, b); err != nil {
				return err
			}
		}
		return nil
	})
}

type appsLoginCmd struct {
	Name string `arg:"" help:"Name of the application, as sally apps ls shows it."`

	AWSRole string `name:"aws-role" placeholder:"ARN" help:"Role for sally aws, by ARN or name; needed when you have several."`

	// Of tsh's flags these are not served.
	Azure  string `name:"azure-identity" hidden:""`
	GCP    string `name:"gcp-service-account" hidden:""`
	Target string `name:"target-port" hidden:""`
	Quiet  bool   `name:"quiet" short:"q" help:"Print nothing."`
}

// Run writes the files and prints the command.
func (c *appsLoginCmd) Run(p *program) error {
	if c.Azure != "" || c.GCP != "" || c.Target != "" {
		return problem(errInvalid, "this version serves no clouds but AWS, and one port of an application", "leave the flag out")
	}
	a, err := p.application(c.Name)
	if err != nil {
		return err
	}
	if a.protocol == sallyport.ProtocolAWS || c.AWSRole != "" {
		return c.aws(p, a)
	}
	if err := p.appFiles(a); err != nil || c.Quiet {
		return err
	}
	p.warnEnded(a.cred, "curl", "sally proxy app "+a.name)
	_, err = fmt.Fprintf(p.stdout, "Logged into app %q. Example curl command:\n\n%s\n", a.name, a.curl(shell.Word))
	return err
}

// aws chooses a role too, and says how to go on.
func (c *appsLoginCmd) aws(p *program, a *application) error {
	access, err := p.awsAccess(awsFlags{App: a.name, Role: c.AWSRole})
	if err != nil {
		return err
	}
	if err := p.appFiles(a); err != nil {
		return err
	}
	if err := p.keepAWSRole(a.cred.Profile, a.name, access.role); err != nil || c.Quiet {
		return err
	}
	_, err = fmt.Fprintf(p.stdout, "Logged into AWS app %q as %s. Example:\n\nsally aws s3 ls\n", a.name, access.role)
	return err
}

type appsLogoutCmd struct {
	Name string `arg:"" optional:"" help:"Name of the application; all without."`
}

// Run removes the files.
func (c *appsLogoutCmd) Run(p *program) error {
	f, err := p.selected()
	if err != nil {
		return err
	}
	names := p.appsOf(f)
	if c.Name != "" {
		if !slices.Contains(names, c.Name) {
			return problem(sallyport.ErrNotFound, fmt.Sprintf("not logged in to application %q", c.Name), "sally apps ls")
		}
		names = []string{c.Name}
	}
	return p.home.Locked(func() error {
		for _, name := range names {
			err := errors.Join(os.Remove(applicationFile(p.home, f, name, ".crt")), os.Remove(applicationFile(p.home, f, name, ".key")), p.dropAWSRole(f, name))
			if err != nil {
				return err
			}
			fmt.Fprintf(p.stdout, "Logged out of app %q.\n", name)
		}
		return nil
	})
}

type appsConfigCmd struct {
	Format string `name:"format" short:"f" enum:"text,uri,ca,cert,key,curl,json,yaml" default:"text" placeholder:"FORMAT" help:"text, uri, ca, cert, key, curl, json or yaml."`
	Name   string `arg:"" optional:"" help:"Name of the application; without, the one that you have logged in to."`
}

type appConfigJSON struct {
	Name string `json:"name"`
	URI  string `json:"uri"`
	CA   string `json:"ca"`
	Cert string `json:"cert"`
	Key  string `json:"key"`
	Curl string `json:"curl"`
}

// Run prints the settings; the files are written so that they are there.
func (c *appsConfigCmd) Run(p *program) error {
	a, err := p.application(c.Name)
	if err != nil {
		return err
	}
	if err := p.appFiles(a); err != nil {
		return err
	}
	out := appConfigJSON{a.name, a.uri(), a.ca, a.cert, a.key, a.curl(shell.Word)}
	one := map[string]string{"uri": out.URI, "ca": out.CA, "cert": out.Cert, "key": out.Key, "curl": a.curl(substituted)}
	switch c.Format {
	case "json", "yaml":
		return output.Write(p.stdout, c.Format, out)
	case "text":
		for _, row := range [][2]string{{"Name", out.Name}, {"URI", out.URI}, {"CA", out.CA}, {"Cert", out.Cert}, {"Key", out.Key}} {
			fmt.Fprintf(p.stdout, "%-11s%s\n", row[0]+":", row[1])
		}
		return nil
	}
	_, err = fmt.Fprintln(p.stdout, one[c.Format])
	return err
}
