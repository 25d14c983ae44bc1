package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sallyport/sallyport/dataplane/sigv4"
	"github.com/sallyport/sallyport/tools/peers"
	"github.com/sallyport/sallyport/tools/peers/dynalite"
)

const (
	awsReader = "arn:aws:iam::123456789012:role/reader"
	awsLocal  = "arn:aws:iam::123456789012:role/local"
)

// awsFront is what stands before DynamoDB at AWS and dynalite lacks: it takes nothing
// that is not signed with a key of its own. It is STS, too, as far as these tests ask.
type awsFront struct {
	*httptest.Server
	tables http.Handler // dynalite

	mu    sync.Mutex
	roles []string // that were assumed, with the name of the session
}

var (
	awsAgent = sigv4.Keys{AccessKey: "AGENTKEY", Secret: "agent-secret"} // the agent's own
	awsLent  = sigv4.Keys{AccessKey: "LENTKEY", Secret: "lent-secret"}   // what STS lends
)

// startAWS starts one, and gives the agents that start in this test its key.
func startAWS(t *testing.T) *awsFront {
	t.Helper()
	d, err := dynalite.Start()
	if errors.Is(err, dynalite.ErrMissing) {
		peers.Missing(t, "dynalite")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Stop)
	t.Setenv("AWS_ACCESS_KEY_ID", awsAgent.AccessKey)
	t.Setenv("AWS_SECRET_ACCESS_KEY", awsAgent.Secret)
	a := &awsFront{tables: httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: d.Addr})}
	a.Server = httptest.NewServer(a)
	t.Cleanup(a.Close)
	return a
}

// apps is the agent's part of the configuration.
func (a *awsFront) apps() string {
	return fmt.Sprintf("  apps: [{name: cloud, uri: %q, labels: {env: test}, aws: {own_role: %q, services: [dynamodb, sts]}}]\n", a.URL, awsLocal)
}

func (a *awsFront) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	keys := awsAgent
	if r.Header.Get(sigv4.TokenHeader) == "lent-token" {
		keys = awsLent
	}
	sum := sha256.Sum256(body)
	hash := hex.EncodeToString(sum[:])
	auth, err := keys.Verify(r, time.Now(), func() (string, error) { return hash, nil })
	if said := r.Header.Get(sigv4.PayloadHeader); err == nil && said != "" && said != hash {
		err = fmt.Errorf("the body is another one")
	}
	if err != nil {
		sigv4.Tell(w, r, sigv4.Fault{Status: 403, Code: "SignatureDoesNotMatch", Message: err.Error(), Service: auth.Service})
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	if auth.Service == "dynamodb" {
		a.tables.ServeHTTP(w, r)
		return
	}
	if err := r.ParseForm(); auth.Service != "sts" || err != nil {
		http.Error(w, "not served here", http.StatusNotFound)
		return
	}
	switch r.PostForm.Get("Action") {
	case "AssumeRole":
		a.mu.Lock()
		a.roles = append(a.roles, r.PostForm.Get("RoleArn")+" "+r.PostForm.Get("RoleSessionName"))
		a.mu.Unlock()
		fmt.Fprintf(w, `<AssumeRoleResponse><AssumeRoleResult><Credentials><AccessKeyId>%s</AccessKeyId><SecretAccessKey>%s</SecretAccessKey><SessionToken>lent-token</SessionToken><Expiration>%s</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>`,
			awsLent.AccessKey, awsLent.Secret, time.Now().Add(time.Hour).UTC().Format(time.RFC3339))
	case "GetCallerIdentity":
		fmt.Fprintf(w, `<GetCallerIdentityResponse><GetCallerIdentityResult><Arn>%s</Arn><UserId>u</UserId><Account>123456789012</Account></GetCallerIdentityResult></GetCallerIdentityResponse>`, keys.AccessKey)
	default:
		http.Error(w, "not served here", http.StatusNotFound)
	}
}

// testAWS is a person with the AWS CLI, who holds no key of AWS.
func testAWS(t *testing.T, c *cluster, p *person, a *awsFront) {
	if _, err := exec.LookPath("aws"); err != nil {
		peers.Missing(t, "aws")
	}
	old := p.extra
	t.Cleanup(func() { p.extra = old })
	p.extra = append([]string{"AWS_REGION=eu-west-1", "AWS_DEFAULT_REGION=eu-west-1", "AWS_PAGER=", "AWS_MAX_ATTEMPTS=1",
		"AWS_SESSION_TOKEN=theirs", "AWS_PROFILE=theirs", "http_proxy=http://127.0.0.1:1", "AWS_ENDPOINT_URL_DYNAMODB=http://127.0.0.1:1"}, p.extra...)
	dynamo := func(args ...string) string {
		t.Helper()
		return p.run("sally", append([]string{"aws", "--app", "cloud", "--aws-role", "reader", "dynamodb"}, args...)...)
	}
	dynamo("create-table", "--table-name", "orders", "--attribute-definitions", "AttributeName=id,AttributeType=S", "--key-schema", "AttributeName=id,KeyType=HASH", "--billing-mode", "PAY_PER_REQUEST")
	dynamo("put-item", "--table-name", "orders", "--item", `{"id":{"S":"7"},"what":{"S":"Käse"}}`)
	if out := dynamo("get-item", "--table-name", "orders", "--key", `{"id":{"S":"7"}}`, "--query", "Item.what.S", "--output", "text"); out != "Käse\n" {
		t.Errorf("get-item: %q", out)
	}
	if out := dynamo("list-tables", "--output", "text"); !strings.Contains(out, "orders") {
		t.Errorf("list-tables: %s", out)
	}
	a.mu.Lock()
	if len(a.roles) != 1 || a.roles[0] != awsReader+" ann" {
		t.Errorf("assumed %q", a.roles)
	}
	a.mu.Unlock()
	if out := p.run("sally", "apps", "login", "--aws-role", awsLocal, "cloud"); !strings.Contains(out, awsLocal) {
		t.Errorf("apps login: %s", out)
	}
	r := p.try("", "sally", "aws", "--", "dynamodb", "delete-table", "--table-name", "people")
	if r.code < 250 || !strings.Contains(r.stderr, "ResourceNotFoundException") {
		t.Errorf("an error of AWS: %+v", r)
	}
	refused := func(what, want string, args ...string) {
		t.Helper()
		if r := p.try("", "sally", append([]string{"aws"}, args...)...); r.code == 0 || !strings.Contains(r.stderr, "AccessDenied") || !strings.Contains(r.stderr, want) {
			t.Errorf("%s: %+v", what, r)
		}
	}
	refused("another role", `"arn:aws:iam::123456789012:role/admin" is not among them`, "--aws-role=arn:aws:iam::123456789012:role/admin", "dynamodb", "list-tables")
	refused("STS with the agent's own key", "own credentials", "sts", "get-session-token")
	refused("another service", "not among those", "s3api", "list-buckets")
	p.refused(1, []string{"0 roles of AWS are named", awsReader}, "sally", "aws", "--aws-role=admin", "s3", "ls")
	p.refused(1, []string{"is AWS", "sally aws --app cloud"}, "sally", "proxy", "app", "cloud")

	// A client with a certificate and without a signature.
	for _, protocol := range []string{"--http1.1", "--http2"} {
		if got := p.run("sh", "-c", strings.TrimSpace(p.run("sally", "apps", "config", "--format=curl", "cloud"))+"/ -sS "+protocol); !strings.Contains(got, "asked by sally aws") {
			t.Errorf("curl %s: %s", protocol, got)
		}
	}

	// Another program than aws, and somebody else who has found its port.
	if r := p.try("", "sally", "aws", "--exec", "sh", "--", "-c", `curl -sS -o /dev/null -w '%{http_code} ' --noproxy '*' -X POST -H 'X-Amz-Target: DynamoDB_20120810.ListTables' "$AWS_ENDPOINT_URL/"; echo "[$AWS_PROFILE$AWS_SESSION_TOKEN$AWS_ENDPOINT_URL_DYNAMODB]"; exit 7`); r.code != 7 || r.stdout != "403 []\n" {
		t.Errorf("--exec: %+v", r)
	}
	proxied := newPerson(t)
	proxied.extra = []string{"AWS_REGION=eu-west-1", "AWS_DEFAULT_REGION=eu-west-1", "AWS_PAGER=", "AWS_MAX_ATTEMPTS=1"}
	out := p.printed(t, "AWS_ENDPOINT_URL=", "proxy", "aws", "--aws-role=reader")
	script := out + "\naws --endpoint-url $AWS_ENDPOINT_URL sts get-caller-identity --query Arn --output text"
	if got := proxied.run("sh", "-c", script); got != awsLent.AccessKey+"\n" {
		t.Errorf("proxy aws: %q", got)
	}

	await(t, "the requests have come to auth", upWait, func() bool {
		r := p.try("", "sallyctl", "--data-dir="+c.path("auth"), "audit", "search", "--event=app.session.dynamodb.request,app.session.start", "--limit=1000")
		for _, secret := range []string{awsAgent.AccessKey, awsAgent.Secret, awsLent.AccessKey, awsLent.Secret, "lent-token"} {
			if strings.Contains(r.stdout, secret) {
				t.Fatalf("%s is in the audit log:\n%s", secret, r.stdout)
			}
		}
		return strings.Contains(r.stdout, `"target":"DynamoDB_20120810.ListTables"`) && strings.Contains(r.stdout, `"aws_role_arn":"`+awsReader) && strings.Contains(r.stdout, "T2007E")
	})
}
