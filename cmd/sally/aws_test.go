package main

import (
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/sigv4"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
)

const (
	awsReader = "arn:aws:iam::123456789012:role/reader"
	awsOther  = "arn:aws:iam::210987654321:role/team/reader"
	awsThird  = "arn:aws:iam::210987654321:role/reader"
)

// TestAWSRole: which role is meant, of those that somebody has.
func TestAWSRole(t *testing.T) {
	cloud := func(arns ...string) *sallyportv1.AccessibleResource {
		return &sallyportv1.AccessibleResource{Resource: &sallyportv1.Resource{Protocol: sallyport.ProtocolAWS}, AwsRoleArns: arns}
	}
	for name, c := range map[string]struct {
		role  string
		found *sallyportv1.AccessibleResource
		want  string
		fault string
	}{
		"the only one":              {"", cloud(awsReader), awsReader, ""},
		"by name":                   {"reader", cloud(awsReader, awsOther), awsReader, ""},
		"by path":                   {"team/reader", cloud(awsReader, awsOther), awsOther, ""},
		"by ARN":                    {awsOther, cloud(awsReader, awsOther), awsOther, ""},
		"an ARN that is not theirs": {awsOther, cloud(awsReader), awsOther, ""}, // the agent says why not
		"auth is away":              {awsOther, nil, awsOther, ""},
		"auth is away, by name":     {"reader", nil, "", "0 roles"},
		"none is named":             {"", cloud(awsReader, awsOther), "", "which role"},
		"none is theirs":            {"", cloud(), "", "which role"},
		"two of that name":          {"reader", cloud(awsReader, awsThird), "", "2 roles"},
		"no such name":              {"admin", cloud(awsReader), "", "0 roles"},
		"no ARN of a role":          {"arn:aws:iam::123456789012:user/x", cloud(awsReader), "", "not the ARN"},
		"a line to be pasted":       {awsReader + "\nrm -r x", cloud(awsReader), "", "not the ARN"},
		"auth's line to be pasted":  {"", cloud("arn:aws:iam::123456789012:role/$(id)"), "", "not the ARN"},
		"an application of the web": {awsReader, &sallyportv1.AccessibleResource{Resource: &sallyportv1.Resource{}}, "", "is not AWS"},
	} {
		got, err := awsRole("cloud", c.role, c.found)
		if got != c.want || (err == nil) != (c.fault == "") || err != nil && !strings.Contains(err.Error(), c.fault) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

// TestAWSEnv: nothing of the caller's environment leads the program to other
// credentials, or past the port.
func TestAWSEnv(t *testing.T) {
	port := awsPort{url: "http://127.0.0.1:1", keys: sigv4.Keys{AccessKey: "K", Secret: "S"}}
	got := awsEnv([]string{"HOME=/h", "AWS_REGION=eu-west-1", "AWS_CONFIG_FILE=/c", "AWS_ACCESS_KEY_ID=theirs", "AWS_SECRET_ACCESS_KEY=theirs", "AWS_SESSION_TOKEN=theirs", "AWS_SECURITY_TOKEN=theirs", "AWS_PROFILE=theirs",
		"AWS_DEFAULT_PROFILE=theirs", "AWS_ROLE_ARN=theirs", "AWS_WEB_IDENTITY_TOKEN_FILE=theirs", "AWS_CONTAINER_CREDENTIALS_FULL_URI=theirs", "AWS_ENDPOINT_URL=theirs", "AWS_ENDPOINT_URL_S3=theirs",
		"AWS_BEARER_TOKEN_BEDROCK=theirs", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS=true", "AWS_EC2_METADATA_DISABLED=false", "HTTPS_PROXY=http://proxy", "NO_PROXY=.internal"}, port)
	want := []string{"HOME=/h", "AWS_REGION=eu-west-1", "AWS_CONFIG_FILE=/c", "HTTPS_PROXY=http://proxy", "AWS_ACCESS_KEY_ID=K", "AWS_SECRET_ACCESS_KEY=S", "AWS_ENDPOINT_URL=http://127.0.0.1:1",
		"AWS_EC2_METADATA_DISABLED=true", "NO_PROXY=127.0.0.1,localhost,.internal", "no_proxy=127.0.0.1,localhost,.internal"}
	if !slices.Equal(got, want) {
		t.Errorf("\n got %q\nwant %q", got, want)
	}
}

// TestKeepAWSRole: a login keeps the role for the commands that follow.
func TestKeepAWSRole(t *testing.T) {
	p := newProgram(t)
	f, err := p.login(alice())
	if err != nil {
		t.Fatal(err)
	}
	if role := p.awsRoleOf(f, "cloud"); role != "" {
		t.Errorf("before: %q", role)
	}
	if err := p.keepAWSRole(f, "cloud", awsReader); err != nil {
		t.Fatal(err)
	}
	if role := p.awsRoleOf(f, "cloud"); role != awsReader {
		t.Errorf("kept %q", role)
	}
	for range 2 {
		if err := p.dropAWSRole(f, "cloud"); err != nil {
			t.Error(err)
		}
	}
	if role := p.awsRoleOf(f, "cloud"); role != "" {
		t.Errorf("dropped: %q", role)
	}
}

// TestProxyAppNotAWS: a port that anybody on the machine reaches leads to no account.
func TestProxyAppNotAWS(t *testing.T) {
	cloud := &sallyportv1.AccessibleResource{Resource: &sallyportv1.Resource{Protocol: sallyport.ProtocolAWS}}
	if err := notAWS("cloud", cloud); err == nil || !strings.Contains(err.Error(), "is AWS") {
		t.Error(err)
	}
	for _, found := range []*sallyportv1.AccessibleResource{nil, {Resource: &sallyportv1.Resource{}}} {
		if err := notAWS("page", found); err != nil {
			t.Error(err)
		}
	}
}

// TestTerminate: a supervisor's SIGTERM reaches the program, which ends as it likes.
func TestTerminate(t *testing.T) {
	cmd := exec.Command("sh", "-c", `trap 'kill $!; exit 7' TERM; sleep 60 >/dev/null & echo ready; wait`)
	out, ready := io.Pipe()
	cmd.Stdout = ready
	go func() {
		defer io.Copy(io.Discard, out)
		if _, err := out.Read(make([]byte, 1)); err == nil {
			syscall.Kill(os.Getpid(), syscall.SIGTERM)
		}
	}()
	err := runClient(cmd)
	ready.Close()
	if code := cmd.ProcessState.ExitCode(); code != 7 {
		t.Errorf("exit code %d, %v", code, err)
	}
}
