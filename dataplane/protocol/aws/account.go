package aws

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/credentials/stscreds"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/sigv4"
)

const (
	maxAssumed    = 1024             // roles of users that are kept
	assumedFor    = 15 * time.Minute // the least that STS gives
	refreshBefore = time.Minute
	stsTimeout    = 30 * time.Second // as long as a request waits for credentials
	stsAnswer     = 10 * time.Second // of one request to STS, of which the SDK makes three
)

// ValidRole says that a text is the ARN of a role.
func ValidRole(arn string) bool { return sigv4.ValidRole(arn) }

// Account is this agent's own standing at AWS, and what it gets by that: the
// roles that it assumes. It is safe for concurrent use; the fields are set before
// first use.
type Account struct {
	Config     aws.Config // of the SDK: the agent's own credentials and region; its HTTPClient asks STS
	OwnRole    string     // what the agent's own credentials are; "" for nothing
	ExternalID string     // told to STS; "" for none
	STS        string     // URL; "": AWS's own
	NoSTS      bool       // none is asked: there is no role but OwnRole
	Log        *slog.Logger

	mu      sync.Mutex
	assumed map[assumption]*aws.CredentialsCache
}

// assumption is one role as one user has it.
type assumption struct{ role, user string }

// credentials are those of the role for the user, new or still good.
func (a *Account) credentials(ctx context.Context, as assumption) (aws.Credentials, error) {
	if as.role == a.OwnRole {
		return a.retrieved(ctx, a.Config.Credentials, as, "the agent has no credentials of its own for AWS")
	}
	return a.retrieved(ctx, a.assume(as), as, fmt.Sprintf("the agent cannot act as %s", as.role))
}

// retrieved asks a provider; why it refuses is for the operator, and only its code
// for the user.
func (a *Account) retrieved(ctx context.Context, p aws.CredentialsProvider, as assumption, fact string) (aws.Credentials, error) {
	if p == nil {
		return aws.Credentials{}, sallyport.Denied(fact, "tell who runs the agent")
	}
	limited, cancel := context.WithTimeout(ctx, stsTimeout)
	defer cancel()
	c, err := p.Retrieve(limited)
	if err == nil {
		return c, nil
	}
	if ctx.Err() == nil { // the client waits still
		a.Log.Warn("credentials for AWS", "role", as.role, "user", as.user, "error", err)
	}
	why := &sallyport.Problem{Kind: sallyport.ErrUnavailable, Fact: fact, Hint: "tell who runs the agent", Cause: err}
	var api smithy.APIError
	if errors.As(err, &api) {
		why.Fact += ": " + api.ErrorCode()
		var answer interface{ HTTPStatusCode() int }
		_, busy := retry.DefaultThrottleErrorCodes[api.ErrorCode()]
		if !busy && (!errors.As(err, &answer) || answer.HTTPStatusCode() < http.StatusInternalServerError) {
			why.Kind = sallyport.ErrDenied
		}
	}
	return aws.Credentials{}, why
}

// assume is the provider for an assumption, which keeps what STS has given.
func (a *Account) assume(as assumption) aws.CredentialsProvider {
	if a.NoSTS {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if p := a.assumed[as]; p != nil {
		return p
	}
	if a.assumed == nil || len(a.assumed) >= maxAssumed {
		a.assumed = make(map[assumption]*aws.CredentialsCache) // all ask STS once more
	}
	client := sts.NewFromConfig(a.Config, func(o *sts.Options) {
		if a.STS == "" || o.Region == "" {
			o.Region = stsRegion(as.role, o.Region)
		}
		if a.STS != "" {
			o.BaseEndpoint = &a.STS
		}
	})
	p := aws.NewCredentialsCache(stscreds.NewAssumeRoleProvider(client, as.role, func(o *stscreds.AssumeRoleOptions) {
		o.RoleSessionName, o.Duration = sessionName(as.user), assumedFor
		if a.ExternalID != "" {
			o.ExternalID = &a.ExternalID
		}
	}), func(o *aws.CredentialsCacheOptions) { o.ExpiryWindow = refreshBefore })
	a.assumed[as] = p
	return p
}

// stsRegion is where STS is asked for a role: in the agent's own region, else in one
// that each account of the role's partition has. What it gives is good in all
// regions. The client's word is not taken: others use what is kept.
func stsRegion(role, own string) string {
	name := partitionOfRole(role)
	if p, ok := partitionOf(own); ok && p.name == name {
		return own
	}
	for _, p := range partitions {
		if p.name == name {
			return p.sts
		}
	}
	return own
}

// partitionOfRole is the second word of an ARN.
func partitionOfRole(arn string) string {
	_, rest, _ := strings.Cut(arn, ":")
	name, _, _ := strings.Cut(rest, ":")
	return name
}

// sessionName is a user's name as CloudTrail shows it: what the name of a session
// cannot hold is replaced, and then a hash tells users apart.
func sessionName(user string) string {
	name := strings.Map(func(r rune) rune {
		if r < 0x80 && (r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || strings.ContainsRune("_+=,.@-", r)) {
			return r
		}
		return '_'
	}, user)
	if name == user && len(name) >= 2 && len(name) <= 64 {
		return name
	}
	sum := sha256.Sum256([]byte(user))
	return name[:min(len(name), 47)] + "-" + hex.EncodeToString(sum[:8])
}
