package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/sallyport/sallyport"
)

const (
	configVersion = 1
	maxConfig     = 4 << 20
	defaultConfig = "/etc/sallyport.yaml"
	defaultData   = "/var/lib/sallyport"

	roleAuth    = "auth"
	roleGateway = "gateway"
	roleAgent   = "agent"
)

// config is the one configuration file, shared by all roles (docs/config.md).
type config struct {
	Version int           `yaml:"version"`
	Cluster string        `yaml:"cluster"`
	DataDir string        `yaml:"data_dir"`
	Roles   []string      `yaml:"roles"`
	Auth    authConfig    `yaml:"auth"`
	Gateway gatewayConfig `yaml:"gateway"`
	Agent   agentConfig   `yaml:"agent"`
	Metrics metricsConfig `yaml:"metrics"`
	Log     logConfig     `yaml:"log"`
}

type authConfig struct {
	Etcd         etcdConfig    `yaml:"etcd"`
	SecondFactor string        `yaml:"second_factor"` // off | optional | totp
	Listen       []string      `yaml:"listen"`        // for gateways on other machines; besides the socket in data_dir
	Offline      offlineConfig `yaml:"offline"`
}

type etcdConfig struct {
	Embedded  *bool     `yaml:"embedded"` // default: true unless endpoints are given
	Endpoints []string  `yaml:"endpoints"`
	TLS       tlsConfig `yaml:"tls"`
}

type tlsConfig struct {
	CA   string `yaml:"ca"`
	Cert string `yaml:"cert"`
	Key  string `yaml:"key"`
}

type offlineConfig struct {
	MaxAge duration `yaml:"max_age"` // default 12h
}

type gatewayConfig struct {
	Listen        []string            `yaml:"listen"`         // default ":443"
	PublicAddress string              `yaml:"public_address"` // host:port that clients use; default: cluster and the port of listen
	Auth          string              `yaml:"auth"`           // host:port of auth; default: this process's own
	Join          joinConfig          `yaml:"join"`
	Certificates  []certificateConfig `yaml:"certificates"`
	ProxyProtocol proxyConfig         `yaml:"proxy_protocol"`
	Routes        []routeConfig       `yaml:"routes"`
	Upstreams     map[string]upstream `yaml:"upstreams"`
}

type certificateConfig struct {
	Cert string `yaml:"cert"`
	Key  string `yaml:"key"`
}

type proxyConfig struct {
	Trusted []string `yaml:"trusted"`
}

type routeConfig struct {
	Match    matchConfig `yaml:"match"`
	Upstream string      `yaml:"upstream"`
	Mode     string      `yaml:"mode"` // passthrough
}

type matchConfig struct {
	SNI  []string `yaml:"sni"`
	ALPN []string `yaml:"alpn"`
}

type upstream struct {
	Servers []string `yaml:"servers"`
	Policy  string   `yaml:"policy"` // round_robin
}

type agentConfig struct {
	Gateways  []string         `yaml:"gateways"`
	Join      joinConfig       `yaml:"join"`
	Group     string           `yaml:"group"` // agents of one group may serve the same names
	SSH       sshConfig        `yaml:"ssh"`
	Databases []databaseConfig `yaml:"databases"`
	TCP       []tcpConfig      `yaml:"tcp"`
}

type joinConfig struct {
	TokenFile string `yaml:"token_file"`
	CAPin     string `yaml:"ca_pin"`
}

type sshConfig struct {
	Enabled bool              `yaml:"enabled"`
	Name    string            `yaml:"name"` // default: the host name
	Labels  map[string]string `yaml:"labels"`
}

type databaseConfig struct {
	Name        string            `yaml:"name"`
	Protocol    string            `yaml:"protocol"` // postgres
	Address     string            `yaml:"address"`
	Description string            `yaml:"description"`
	Labels      map[string]string `yaml:"labels"`
	TLS         databaseTLS       `yaml:"tls"`
}

type databaseTLS struct {
	Mode       string `yaml:"mode"` // verify-full (default) | verify-ca | insecure
	CA         string `yaml:"ca"`   // file; besides the cluster's db CA
	ServerName string `yaml:"server_name"`
}

type tcpConfig struct {
	Name        string            `yaml:"name"`
	Address     string            `yaml:"address"`
	Description string            `yaml:"description"`
	Labels      map[string]string `yaml:"labels"`
}

type metricsConfig struct {
	Socket string `yaml:"socket"` // default: admin.sock in data_dir
	Listen string `yaml:"listen"` // host:port on a loopback address
}

type logConfig struct {
	Level  string `yaml:"level"`  // debug | info (default) | warn | error
	Format string `yaml:"format"` // text (default) | json
}

// duration is a time in Go's notation: "12h", "30s".
type duration time.Duration

// UnmarshalYAML reads "12h".
func (d *duration) UnmarshalYAML(b []byte) error {
	text := strings.Trim(strings.TrimSpace(string(b)), `"'`)
	v, err := time.ParseDuration(text)
	if err != nil {
		return fmt.Errorf("%q is not a duration such as 12h or 30s", text)
	}
	*d = duration(v)
	return nil
}

// later names the words of the configuration that this version knows of and
// does not serve.
var later = map[string]string{
	"kubernetes": "Kubernetes clusters",
	"apps":       "web applications",
	"acme":       "ACME certificates",
	"health":     "health checks of upstreams",
}

// loadConfig reads, checks and completes the file. Every fault is reported
// with its place; none has an effect.
func loadConfig(path string) (*config, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, &sallyport.Problem{Kind: sallyport.ErrNotFound, Fact: err.Error(), Hint: "sallyport configure -o " + path + " writes one"}
	}
	if info.Size() > maxConfig {
		return nil, fmt.Errorf("%s: %d bytes, more than %d", path, info.Size(), maxConfig)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	c, err := parseConfig(data)
	if err != nil {
		return nil, fmt.Errorf("%s:%w", path, err)
	}
	c.resolve(filepath.Dir(path))
	return c, nil
}

// parseConfig returns errors that begin with "line:column: ".
func parseConfig(data []byte) (*config, error) {
	var c config
	if err := yaml.UnmarshalWithOptions(data, &c, yaml.Strict()); err != nil {
		return nil, placed(err)
	}
	if err := c.check(); err != nil {
		return nil, fmt.Errorf(" %w", err)
	}
	c.complete()
	return &c, nil
}

var unknownField = regexp.MustCompile(`^unknown field "(.*)"$`)

// placed turns the parser's error into "line:column: fact", with a suggestion
// for a word that is nearly one of ours.
func placed(err error) error {
	var ye yaml.Error
	if !errors.As(err, &ye) || ye.GetToken() == nil {
		return fmt.Errorf(" %w", err)
	}
	pos, fact := ye.GetToken().Position, ye.GetMessage()
	if m := unknownField.FindStringSubmatch(fact); m != nil {
		switch near := nearest(m[1], words(reflect.TypeFor[config]())); {
		case later[m[1]] != "":
			fact = fmt.Sprintf("%s: this version does not serve %s; remove it", m[1], later[m[1]])
		case near != "":
			fact = fmt.Sprintf("unknown field %q; did you mean %q?", m[1], near)
		}
	}
	return fmt.Errorf("%d:%d: %s", pos.Line, pos.Column, fact)
}

// words are all field names of the configuration.
func words(t reflect.Type) []string {
	var out []string
	switch t.Kind() {
	case reflect.Struct:
		for i := range t.NumField() {
			tag, _, _ := strings.Cut(t.Field(i).Tag.Get("yaml"), ",")
			if tag != "" && tag != "-" {
				out = append(out, tag)
			}
			out = append(out, words(t.Field(i).Type)...)
		}
	case reflect.Pointer, reflect.Slice, reflect.Map:
		out = words(t.Elem())
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// nearest returns the known word at an edit distance of at most a third of the
// word's length, or "".
func nearest(word string, known []string) string {
	best, at := "", max(1, len(word)/3)+1
	for _, k := range known {
		if d := distance(word, k); d < at {
			best, at = k, d
		}
	}
	return best
}

// distance is Levenshtein's.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		left := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := left
			if a[i] != b[j] {
				cost = 1 + min(left, row[j], row[j+1])
			}
			left, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}

func (c *config) has(role string) bool { return slices.Contains(c.Roles, role) }

// check finds what the grammar cannot.
func (c *config) check() error {
	if c.Version != configVersion {
		return fmt.Errorf("version: %d; this program reads version: %d", c.Version, configVersion)
	}
	if len(c.Roles) == 0 {
		return errors.New("roles: name at least one of auth, gateway, agent")
	}
	for _, r := range c.Roles {
		if !slices.Contains([]string{roleAuth, roleGateway, roleAgent}, r) {
			return fmt.Errorf("roles: %q is none of auth, gateway, agent", r)
		}
	}
	if c.Cluster == "" && c.has(roleAuth) {
		return errors.New("cluster: the public name of the cluster is needed, for example gw.example.com")
	}
	if c.Cluster != "" && !validCluster(c.Cluster) {
		return fmt.Errorf("cluster: %q is not a DNS name in lower case", c.Cluster)
	}
	return errors.Join(c.checkAuth(), c.checkGateway(), c.checkAgent(), c.checkRest())
}

func (c *config) checkAuth() error {
	a := c.Auth
	if !slices.Contains([]string{"", "off", "optional", "totp"}, a.SecondFactor) {
		return fmt.Errorf("auth.second_factor: %q is none of off, optional, totp", a.SecondFactor)
	}
	if a.Etcd.Embedded != nil && *a.Etcd.Embedded && len(a.Etcd.Endpoints) > 0 {
		return errors.New("auth.etcd: embedded: true and endpoints exclude each other")
	}
	if a.Etcd.Embedded != nil && !*a.Etcd.Embedded && len(a.Etcd.Endpoints) == 0 {
		return errors.New("auth.etcd: embedded: false needs endpoints")
	}
	if a.Offline.MaxAge < 0 {
		return errors.New("auth.offline.max_age: less than zero")
	}
	return addresses("auth.listen", a.Listen)
}

func (c *config) checkGateway() error {
	g := c.Gateway
	if c.has(roleGateway) && !c.has(roleAuth) && g.Auth == "" && len(g.Routes) == 0 {
		return errors.New("gateway.auth: the address of auth is needed, or routes to serve without it")
	}
	if g.Auth != "" && !c.has(roleAuth) && g.Join.CAPin == "" {
		return errors.New("gateway.join.ca_pin: needed to know auth by; sallyctl status on the auth host prints it")
	}
	for i, r := range g.Routes {
		if _, ok := g.Upstreams[r.Upstream]; !ok {
			return fmt.Errorf("gateway.routes[%d]: no upstream %q", i, r.Upstream)
		}
		if r.Mode != "" && r.Mode != "passthrough" {
			return fmt.Errorf("gateway.routes[%d].mode: this version knows passthrough only", i)
		}
		if len(r.Match.SNI) == 0 {
			return fmt.Errorf("gateway.routes[%d].match.sni: at least one name is needed", i)
		}
	}
	for name, u := range g.Upstreams {
		if len(u.Servers) == 0 {
			return fmt.Errorf("gateway.upstreams.%s.servers: at least one is needed", name)
		}
		if u.Policy != "" && u.Policy != "round_robin" {
			return fmt.Errorf("gateway.upstreams.%s.policy: this version knows round_robin only", name)
		}
		if err := addresses("gateway.upstreams."+name+".servers", u.Servers); err != nil {
			return err
		}
	}
	for _, p := range g.ProxyProtocol.Trusted {
		if _, err := netip.ParsePrefix(p); err != nil {
			return fmt.Errorf("gateway.proxy_protocol.trusted: %q is not a network such as 10.0.0.0/8", p)
		}
	}
	return addresses("gateway.listen", g.Listen)
}

func (c *config) checkAgent() error {
	if !c.has(roleAgent) {
		return nil
	}
	a := c.Agent
	if !c.has(roleGateway) && len(a.Gateways) == 0 {
		return errors.New("agent.gateways: at least one host:port is needed")
	}
	if !c.has(roleAuth) && a.Join.CAPin == "" {
		return errors.New("agent.join.ca_pin: needed to know auth by; sallyctl tokens add prints it")
	}
	for i, d := range a.Databases {
		if d.Protocol != "postgres" {
			return fmt.Errorf("agent.databases[%d].protocol: %q; this version serves postgres only", i, d.Protocol)
		}
		if !slices.Contains([]string{"", "verify-full", "verify-ca", "insecure"}, d.TLS.Mode) {
			return fmt.Errorf("agent.databases[%d].tls.mode: %q is none of verify-full, verify-ca, insecure", i, d.TLS.Mode)
		}
		if err := named(fmt.Sprintf("agent.databases[%d]", i), d.Name, d.Address); err != nil {
			return err
		}
	}
	for i, t := range a.TCP {
		if err := named(fmt.Sprintf("agent.tcp[%d]", i), t.Name, t.Address); err != nil {
			return err
		}
	}
	return addresses("agent.gateways", a.Gateways)
}

func (c *config) checkRest() error {
	if !slices.Contains([]string{"", "debug", "info", "warn", "error"}, c.Log.Level) {
		return fmt.Errorf("log.level: %q is none of debug, info, warn, error", c.Log.Level)
	}
	if !slices.Contains([]string{"", "text", "json"}, c.Log.Format) {
		return fmt.Errorf("log.format: %q is none of text, json", c.Log.Format)
	}
	if c.Metrics.Listen == "" {
		return nil
	}
	host, _, err := net.SplitHostPort(c.Metrics.Listen)
	if ip, perr := netip.ParseAddr(host); err != nil || host != "localhost" && (perr != nil || !ip.IsLoopback()) {
		return fmt.Errorf("metrics.listen: %q is not host:port on a loopback address", c.Metrics.Listen)
	}
	return nil
}

var label = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

func named(where, name, address string) error {
	if !label.MatchString(name) {
		return fmt.Errorf("%s.name: %q is not one DNS label in lower case", where, name)
	}
	return addresses(where+".address", []string{address})
}

func validCluster(name string) bool {
	for part := range strings.SplitSeq(name, ".") {
		if !label.MatchString(part) {
			return false
		}
	}
	return len(name) <= 200
}

func addresses(where string, list []string) error {
	for _, a := range list {
		if _, _, err := net.SplitHostPort(a); err != nil {
			return fmt.Errorf("%s: %q is not host:port", where, a)
		}
	}
	return nil
}

// complete fills in the defaults.
func (c *config) complete() {
	set(&c.DataDir, defaultData)
	set(&c.Auth.SecondFactor, "optional")
	set(&c.Log.Level, "info")
	set(&c.Log.Format, "text")
	if len(c.Gateway.Listen) == 0 {
		c.Gateway.Listen = []string{":443"}
	}
	if c.Gateway.PublicAddress == "" && c.Cluster != "" {
		_, port, _ := net.SplitHostPort(c.Gateway.Listen[0])
		c.Gateway.PublicAddress = net.JoinHostPort(c.Cluster, port)
	}
	for i := range c.Agent.Databases {
		set(&c.Agent.Databases[i].TLS.Mode, "verify-full")
	}
	if c.Auth.Offline.MaxAge == 0 {
		c.Auth.Offline.MaxAge = duration(12 * time.Hour)
	}
}

// resolve makes file names absolute: they are relative to the file that names them.
func (c *config) resolve(dir string) {
	files := []*string{&c.DataDir, &c.Auth.Etcd.TLS.CA, &c.Auth.Etcd.TLS.Cert, &c.Auth.Etcd.TLS.Key,
		&c.Gateway.Join.TokenFile, &c.Agent.Join.TokenFile}
	for i := range c.Gateway.Certificates {
		files = append(files, &c.Gateway.Certificates[i].Cert, &c.Gateway.Certificates[i].Key)
	}
	for i := range c.Agent.Databases {
		files = append(files, &c.Agent.Databases[i].TLS.CA)
	}
	for _, f := range files {
		if *f != "" && !filepath.IsAbs(*f) {
			*f = filepath.Join(dir, *f)
		}
		if abs, err := filepath.Abs(*f); err == nil && *f != "" {
			*f = abs
		}
	}
}

func set(field *string, value string) {
	if *field == "" {
		*field = value
	}
}
