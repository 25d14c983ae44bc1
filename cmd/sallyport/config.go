package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/protocol/aws"
	"github.com/sallyport/sallyport/dataplane/relay"
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

// config is the one configuration file, shared by all roles. docs/config.md is
// made from these structs: each field's comment is what it says there.
type config struct {
	Version int           `yaml:"version"`  // Version of the format: 1. Required.
	Cluster string        `yaml:"cluster"`  // The cluster's public name, a DNS name in lower case: `gw.example.com`. Required with the role auth; other roles learn it when they join.
	DataDir string        `yaml:"data_dir"` // Directory for keys, certificates, state and the audit log; made with mode 0700. Default: `/var/lib/sallyport`.
	Roles   []string      `yaml:"roles"`    // What this process runs: any of `auth`, `gateway`, `agent`. Required.
	Auth    authConfig    `yaml:"auth"`     // The control plane. Read with the role auth.
	Gateway gatewayConfig `yaml:"gateway"`  // The public port. Read with the role gateway.
	Agent   agentConfig   `yaml:"agent"`    // What stands beside the resources. Read with the role agent.
	Metrics metricsConfig `yaml:"metrics"`  // Where counters can be read.
	Log     logConfig     `yaml:"log"`      // What is written to standard error.
	Upgrade upgradeConfig `yaml:"upgrade"`  // What a new program may take over, and how long the old one stays.
}

type authConfig struct {
	Etcd         etcdConfig    `yaml:"etcd"`          // Where state is kept.
	SecondFactor string        `yaml:"second_factor"` // Whether people need a one-time code: `off`, `optional` (those who have one must use it) or `totp` (everybody). Default: `optional`.
	Listen       []string      `yaml:"listen"`        // Addresses for gateways on other machines, such as `:3025`, besides the socket in `data_dir`. Default: none.
	Offline      offlineConfig `yaml:"offline"`       // What hosts may do while auth is away.
}

type etcdConfig struct {
	Embedded  *bool     `yaml:"embedded"`  // Keep state in this process, in `data_dir`. Default: `true` unless `endpoints` are given.
	Endpoints []string  `yaml:"endpoints"` // URLs of an etcd cluster to use instead: `https://etcd1:2379`.
	TLS       tlsConfig `yaml:"tls"`       // How auth and the etcd cluster know each other.
	QuotaMiB  *int      `yaml:"quota_mib"` // MiB that the embedded store's database may have, its history of 15 minutes included: 64 to 8192. When it is full, changes are refused but for locks and removals, for which a sixteenth of it, 16 MiB at most, is kept besides. Takes effect at the next start. Default: 2048.
}

// What the embedded store may have: not less than an announcement as large as may
// be takes with its history, and not more than etcd is made for.
const (
	leastQuotaMiB = 64
	mostQuotaMiB  = 8192
)

// quota is 0 for the store's default, in bytes.
func (c *etcdConfig) quota() int64 { return int64(given(c.QuotaMiB)) << 20 }

type tlsConfig struct {
	CA   string `yaml:"ca"`   // File with the CA's certificates. Default: those of the system.
	Cert string `yaml:"cert"` // File with the client certificate.
	Key  string `yaml:"key"`  // File with its key.
}

type offlineConfig struct {
	MaxAge *duration `yaml:"max_age"` // How old a host's signed copy of roles and locks may be when a new session starts, such as `12h` or `30m`: `1s` or more, in whole seconds. Default: `12h`.
}

// defaultMaxAge is a night, or a long day.
const defaultMaxAge = 12 * time.Hour

// maxAge is how old a host's copy may be.
func (c *offlineConfig) maxAge() time.Duration {
	if c.MaxAge == nil {
		return defaultMaxAge
	}
	return time.Duration(*c.MaxAge)
}

type gatewayConfig struct {
	Listen        []string            `yaml:"listen"`         // Addresses of the public port. Default: `[":443"]`.
	PublicAddress string              `yaml:"public_address"` // The `host:port` that clients use: `cluster` or an IP address, and the port. Another name is for agents alone, which reach each of several gateways by its own. Default: `cluster` and the port of the first `listen`.
	Auth          string              `yaml:"auth"`           // The `host:port` of auth, for a gateway without the role auth. Without it and without auth the gateway serves `routes` alone: no cluster, no certificates.
	Join          joinConfig          `yaml:"join"`           // How a gateway on another machine than auth joins.
	Certificates  []certificateConfig `yaml:"certificates"`   // Certificates for the web origin. Read again at each reload. Default: one of the cluster's own CA.
	ProxyProtocol proxyConfig         `yaml:"proxy_protocol"` // Load balancers in front of the gateway.
	Routes        []routeConfig       `yaml:"routes"`         // Names that lead to upstreams without any agent. The strictest match wins; docs/static-routes.md has examples.
	Upstreams     map[string]upstream `yaml:"upstreams"`      // Groups of servers, by a name of your choice, for `routes`.
	Silent        silentConfig        `yaml:"silent"`         // Where clients go that say nothing because they wait for the server to speak first (MySQL, SMTP): one place for all of them. Default: nowhere, they are closed.
	Limits        limitsConfig        `yaml:"limits"`         // What strangers and agents may take.
	IOUring       string              `yaml:"io_uring"`       // Closing connections by io_uring, many at once: `on` where the kernel allows it, `off`, or `auto`, which is what measurement says and at present off (docs/io_uring.md). Default: `auto`.
}

type certificateConfig struct {
	Cert string `yaml:"cert"` // File with the chain, PEM.
	Key  string `yaml:"key"`  // File with the key, PEM.
}

type proxyConfig struct {
	Trusted []string `yaml:"trusted"` // Networks and addresses whose PROXY headers are believed, such as `10.0.0.0/8`; from elsewhere they are refused. Default: none.
}

type routeConfig struct {
	Names     []string    `yaml:"names"`      // Server names: `shop.example.com`; `*.shop.example.com` for one label more; `*` for every name that nothing else has, a missing one included. Required, here or in `match`.
	ALPN      []string    `yaml:"alpn"`       // Protocol ids, such as `h2`. Of several routes with a name, the one with the client's first id is taken. Default: any.
	To        []string    `yaml:"to"`         // Servers, `host:port` or `unix:/path`, taken in turn; one that does not answer is passed over. Required, unless there is an `upstream`.
	SendProxy string      `yaml:"send_proxy"` // Tell the servers of `to` the client's address by PROXY protocol: `v2`. Default: do not.
	Postgres  string      `yaml:"postgres"`   // What the servers of `to` get of a PostgreSQL client that has asked for TLS: `request`, its SSLRequest first, as PostgreSQL and PgBouncer want it, and TLS at once where that is not understood; or `direct`, TLS at once. Default: `request`.
	Match     matchConfig `yaml:"match"`      // `names` and `alpn` written as one.
	Upstream  string      `yaml:"upstream"`   // A name from `upstreams`, instead of `to`.
	Mode      string      `yaml:"mode"`       // What is done with TLS: `passthrough`, it is not ended here. Default: `passthrough`.
}

type matchConfig struct {
	SNI  []string `yaml:"sni"`  // As `names`.
	ALPN []string `yaml:"alpn"` // As `alpn` of the route.
}

type silentConfig struct {
	After     *duration `yaml:"after"`      // How long a client must have said nothing: from `100ms` to `limits.handshake`. Each such client waits so long; a slow client of any other protocol that takes longer for its first byte is taken for one. Default: `2s`.
	To        []string  `yaml:"to"`         // Servers, `host:port` or `unix:/path`, taken in turn as those of a route. They get the connection as it is: no TLS is asked for, and nobody is identified.
	SendProxy string    `yaml:"send_proxy"` // Tell the servers the client's address by PROXY protocol: `v2`. Default: do not.
}

type upstream struct {
	Servers   []string `yaml:"servers"`    // Addresses, `host:port` or `unix:/path`. Required.
	Policy    string   `yaml:"policy"`     // Which server is next: `round_robin`. Default: `round_robin`.
	SendProxy string   `yaml:"send_proxy"` // Tell the servers the client's address by PROXY protocol: `v2`. Default: do not.
	Postgres  string   `yaml:"postgres"`   // What the servers get of a PostgreSQL client that has asked for TLS: `request` or `direct`, as for a route. Default: `request`.
}

// limitsConfig: nil is the default; ranges has what is allowed.
type limitsConfig struct {
	Handshake        *duration `yaml:"handshake"`          // How long a client may take for each step until it is served, and an agent or auth for the first byte: `1s` to `5m`. The servers of a route have as long to take the connection; when one answers is between it and the client. Default: `10s`.
	Connect          *duration `yaml:"connect"`            // How long one server of a route may take to answer while there are others: `100ms` to `1m`. Default: `3s`.
	Idle             *duration `yaml:"idle"`               // A connection through the gateway in which no byte has moved for so long is closed: `10s` or more. Default: never.
	WaitingPerSource *int      `yaml:"waiting_per_source"` // Connections that are not served yet, per source (an IPv4 address or an IPv6 /64): 1 to 1000000. Sources of agents may have 16 times as many. Default: 16; 1024 where `routes` are all that is served.
	Waiting          *int      `yaml:"waiting"`            // The same for all sources together; a quarter is kept for sources of agents: 16 to 1000000. Default: 4096.
	RatePerSource    *int      `yaml:"rate_per_source"`    // New connections per source and second that do not say at once what they want, or that want to join: 1 to 1000000. Default: 20; 1000 where `routes` are all that is served.
	LargeHellos      *int      `yaml:"large_hellos"`       // ClientHellos of more than 16 KiB at once, for each processor: 1 to 65536. Default: 64.
	WebPerSource     *int      `yaml:"web_per_source"`     // Open web connections per source: 1 to 1000000. Default: 64.
	Web              *int      `yaml:"web"`                // The same for all sources together, and never more than a quarter of the descriptors that the process may have: 16 to 1000000. Default: 4096.

	HalfOpenPerSource *int      `yaml:"half_open_per_source"` // Streams to agents whose client has not proved itself yet, per source: 1 to 1000000. Takes effect at the next start. Default: 16.
	HalfOpenPerAgent  *int      `yaml:"half_open_per_agent"`  // The same per agent: 4 to 1000000. Takes effect at the next start. Default: 64.
	HalfOpen          *int      `yaml:"half_open"`            // The same in all: 16 to 1000000. Takes effect at the next start. Default: 4096.
	StreamsPerSource  *int      `yaml:"stream_rate"`          // New streams to agents per source and second: 1 to 1000000. Takes effect at the next start. Default: 20.
	ParkedMin         *int      `yaml:"parked_min"`           // Data connections that each agent always keeps ready: 1 to 1024. Takes effect at the next start. Default: 4.
	ParkedPerAgent    *int      `yaml:"parked_per_agent"`     // Data connections that each agent keeps ready at most: 1 to 1024, which is what an agent holds, and not less than `parked_min`. Takes effect at the next start. Default: 256.
	Parked            *int      `yaml:"parked"`               // The same of all agents together, and never more than half of the descriptors that the process may have: 16 to 1000000. Takes effect at the next start. Default: 65536.
	ParkedFor         *duration `yaml:"parked_for"`           // How old a data connection gets before another takes its place; less than what address translators on the way forget after: `30s` to `1h`. Takes effect at the next start. Default: `3m30s`.
	Carried           *int      `yaml:"carried"`              // Data connections inside TLS or a WebSocket, for networks that allow nothing else: 1 to 1000000. Takes effect at the next start. Default: 4096.
	LeaseWait         *duration `yaml:"lease_wait"`           // How long a client waits for an agent that has no data connection ready: `10ms` to `1m`, and at most `handshake`, which ends the wait too. Takes effect at the next start. Default: `2s`.
	Agents            *int      `yaml:"agents"`               // Agents that may be connected: 1 to 1000000. Takes effect at the next start. Default: 16384.
	ResourcesPerAgent *int      `yaml:"resources_per_agent"`  // Resources that one agent may serve: 1 to 1000000. Takes effect at the next start. Default: 16384.
}

type agentConfig struct {
	Gateways  []string         `yaml:"gateways"`  // Gateways to connect to, `host:port`. Required without the role gateway; then this process's own.
	Join      joinConfig       `yaml:"join"`      // How an agent on another machine than auth joins.
	Group     string           `yaml:"group"`     // Agents of one group may serve the same names. Default: none.
	SSH       sshConfig        `yaml:"ssh"`       // This machine, as a node.
	Databases []databaseConfig `yaml:"databases"` // Databases that this agent serves.
	TCP       []tcpConfig      `yaml:"tcp"`       // TCP services that this agent serves.
	Apps      []appConfig      `yaml:"apps"`      // Web applications that this agent serves.

	Kubernetes []kubernetesConfig `yaml:"kubernetes"` // Kubernetes clusters that this agent serves.
}

type joinConfig struct {
	TokenFile string `yaml:"token_file"` // File with the join token that `sallyctl tokens add` prints. Read once, until the host has joined.
	CAPin     string `yaml:"ca_pin"`     // What auth is known by at first: `sha256:` and 64 hex digits, several separated by commas. `sallyctl status` prints it. Required where auth is another process.
}

type sshConfig struct {
	Enabled bool              `yaml:"enabled"` // Serve SSH to this machine. Default: `false`.
	Name    string            `yaml:"name"`    // Name of the node. Default: the host name.
	Labels  map[string]string `yaml:"labels"`  // Labels that roles and `sally ls` select by.

	ListenAnywhere bool `yaml:"listen_anywhere"` // Let `ssh -R` listen at the address that the client names. Default: `false`, on the loopback only.
}

type databaseConfig struct {
	Name        string            `yaml:"name"`        // One DNS label in lower case. Required.
	Protocol    string            `yaml:"protocol"`    // `postgres`, `mysql` (MySQL and MariaDB) or `redis` (Redis and Valkey). Required.
	Address     string            `yaml:"address"`     // The server's `host:port`, as this agent reaches it. Required.
	Description string            `yaml:"description"` // For people, in listings.
	Labels      map[string]string `yaml:"labels"`      // Labels that roles and `sally db ls` select by.
	TLS         databaseTLS       `yaml:"tls"`         // How the server is known.
}

type databaseTLS struct {
	Mode       string `yaml:"mode"`        // `verify-full`, `verify-ca` (the name is not checked) or `insecure` (nothing is). Default: `verify-full`.
	CA         string `yaml:"ca"`          // File with CAs to believe besides the cluster's db CA.
	ServerName string `yaml:"server_name"` // Name that the server's certificate must have. Default: the host of `address`.
}

type tcpConfig struct {
	Name        string            `yaml:"name"`        // One DNS label in lower case. Required.
	Address     string            `yaml:"address"`     // The service's `host:port`, or `unix:/path`, as this agent reaches it. Required.
	Description string            `yaml:"description"` // For people, in listings.
	Labels      map[string]string `yaml:"labels"`      // Labels that roles and `sally tcp ls` select by.
}

type kubernetesConfig struct {
	Name        string            `yaml:"name"`        // One DNS label in lower case. Required.
	Kubeconfig  string            `yaml:"kubeconfig"`  // File that says where the API server is and how this agent is known there: a client certificate, a token or a `tokenFile`. Required without `in_cluster`.
	Context     string            `yaml:"context"`     // Context of that file. Default: its current one.
	InCluster   bool              `yaml:"in_cluster"`  // This agent is a pod of the cluster: use its service account. Default: `false`.
	Description string            `yaml:"description"` // For people, in listings.
	Labels      map[string]string `yaml:"labels"`      // Labels that roles and `sally kube ls` select by.
}

type appConfig struct {
	Name        string            `yaml:"name"`        // One DNS label in lower case, and none of `node`, `db`, `kube`, `tcp`, `app`, `desktop`, `auth`, `api`, `www`. Required.
	URI         string            `yaml:"uri"`         // Where this agent reaches it: `http://localhost:3000`, `https://grafana.internal`, or `unix:/run/app.sock`. A path is where visitors of `/` are sent. `https://console.aws.amazon.com` (in China `https://console.amazonaws.cn`, `https://console.amazonaws-us-gov.com`) stands for AWS, for `sally aws`: each request goes to the endpoint of its service and region. Required.
	Description string            `yaml:"description"` // For people, in listings.
	Labels      map[string]string `yaml:"labels"`      // Labels that roles and `sally apps ls` select by.
	TLS         appTLS            `yaml:"tls"`         // How an application at `https` is known.
	Rewrite     appRewrite        `yaml:"rewrite"`     // What is changed in requests and answers.
	AWS         awsConfig         `yaml:"aws"`         // For `sally aws`: AWS, or with another `uri` than its console a server that speaks as AWS does (DynamoDB local). Requests are signed here, with credentials that only this agent has: those of the AWS SDK's usual chain (environment, shared files, the machine's role).
}

// awsConfig: an application with any of it, or at AWS's console, is for AWS's clients.
type awsConfig struct {
	OwnRole    string   `yaml:"own_role"`    // ARN of the role that this agent's own credentials are. Who asks for it is served with them, and may not ask STS; all other roles are assumed by STS. Needs `services` where `uri` is not AWS's console; a server there must check which service a request is signed for. Users get roles by `aws_role_arns`. Default: none.
	ExternalID string   `yaml:"external_id"` // External id to assume roles with. Default: none.
	STS        string   `yaml:"sts"`         // URL of the STS that assumes roles; at `http` on this machine only. On the host of `uri` it is known as `tls` says. Default: `uri`, or AWS's own where that is the console; none where `uri` is at `http` on another machine, by which keys would pass in the clear.
	Services   []string `yaml:"services"`    // Services that may be asked, by their names in signatures: `dynamodb`, `s3`. Default: all.
	Regions    []string `yaml:"regions"`     // Regions that may be asked: `eu-central-1`. Default: all.
}

// isAWS says that an application is for AWS's clients.
func (a *appConfig) isAWS() bool {
	return aws.IsConsole(a.URI) || !reflect.ValueOf(a.AWS).IsZero()
}

type appTLS struct {
	CA         string `yaml:"ca"`          // File with the CAs to believe, PEM. Default: those of the system.
	ServerName string `yaml:"server_name"` // Name that the certificate must have. Default: the host of `uri`.
	Insecure   bool   `yaml:"insecure"`    // Do not check the certificate. Default: `false`.
}

type appRewrite struct {
	Headers   []string `yaml:"headers"`   // Headers set on each request in place of what the client says: `Name: value`. A value may hold one template as roles do: `X-Email: {{external.email}}`. `Host` sets the host that the application sees.
	Redirects []string `yaml:"redirects"` // Hosts besides that of `uri` whose redirects lead back to the application: `grafana.internal`.
}

type metricsConfig struct {
	Socket string `yaml:"socket"` // The Unix socket in `data_dir` that `sallyport status` asks: `admin.sock`, the only one that this version has.
	Listen string `yaml:"listen"` // A `host:port` on a loopback address. Default: none.
}

type logConfig struct {
	Level  string `yaml:"level"`  // `debug`, `info`, `warn` or `error`. Default: `info`.
	Format string `yaml:"format"` // `text` or `json`. Default: `text`.
}

type upgradeConfig struct {
	Drain *duration `yaml:"drain"` // How long an old process may go on with what could not move to the new one, such as shells: `0s` to `720h`. Default: `8h`.
}

// defaultDrain is a working day.
const defaultDrain = 8 * time.Hour

// drain is how long an old process stays at most.
func (c *upgradeConfig) drain() time.Duration {
	if c.Drain == nil {
		return defaultDrain
	}
	return time.Duration(*c.Drain)
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

// loadConfig reads, checks and completes the file. Every fault is reported
// with its place; none has an effect.
func loadConfig(path string) (*config, error) { return loadConfigOf(path, "") }

// loadConfigOf is loadConfig where the cluster is known already, as it is once a
// gateway or an agent has joined; "" when it is not.
func loadConfigOf(path, cluster string) (*config, error) {
	c, _, err := loadConfigAgain(path, cluster, nil)
	return c, err
}

// loadConfigAgain is loadConfigOf by what was read before, nil the first time.
func loadConfigAgain(path, cluster string, before *reading) (*config, *reading, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, &sallyport.Problem{Kind: sallyport.ErrNotFound, Fact: err.Error(), Hint: "sallyport configure -o " + shellQuote(path) + " writes one", Cause: err}
	}
	if err != nil {
		return nil, nil, err
	}
	if info.Size() > maxConfig {
		return nil, nil, fmt.Errorf("%s: %d bytes, more than %d", path, info.Size(), maxConfig)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, err
	}
	c, read, done := before.again(data, cluster)
	if !done {
		if c, err = parseConfigOf(data, cluster); err != nil {
			return nil, nil, located(path, err)
		}
		read = readingOf(data, c)
	}
	c.resolve(filepath.Dir(path))
	return c, read, nil
}

func (c *config) has(role string) bool { return slices.Contains(c.Roles, role) }

// pagesAddress is the host:port of links to the cluster's pages, and of logins. They
// are found by the cluster's name, or by none: under another that is the public
// address agents alone reach the gateway.
func (c *config) pagesAddress() string {
	host, port, err := net.SplitHostPort(c.Gateway.PublicAddress)
	if _, noIP := netip.ParseAddr(host); err != nil || noIP == nil {
		return c.Gateway.PublicAddress
	}
	return net.JoinHostPort(c.Cluster, port)
}

// complete fills in the defaults.
func (c *config) complete() {
	set(&c.DataDir, defaultData)
	set(&c.Auth.SecondFactor, "optional")
	set(&c.Log.Level, "info")
	set(&c.Log.Format, "text")
	set(&c.Gateway.IOUring, string(relay.BatchAuto))
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
	for i := range c.Agent.Apps {
		files = append(files, &c.Agent.Apps[i].TLS.CA)
	}
	for i := range c.Agent.Kubernetes {
		files = append(files, &c.Agent.Kubernetes[i].Kubeconfig)
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
