package sigv4

import (
	"net/http"
	"regexp"
	"strings"
)

// arnForm is the ARN of a role that may be asked for, but for how long its path and
// name may be: a count would be compiled into as many steps, in every program.
var arnForm = regexp.MustCompile(`^arn:(aws|aws-cn|aws-us-gov):iam::[0-9]{12}:role/([A-Za-z0-9_+=,.@/-]+)$`)

const maxRole = 576 // a path of 512 and a name of 64 (IAM, CreateRole)

// ValidRole says that a text is the ARN of a role.
func ValidRole(arn string) bool {
	parts := arnForm.FindStringSubmatch(arn)
	return parts != nil && len(parts[2]) <= maxRole
}

// Operation is the operation that a request names in the JSON protocols, and in that
// of CBOR that clients of Kinesis in Java use; others do not read the header.
func Operation(h http.Header) string {
	form := strings.ToLower(one(h, "Content-Type"))
	if !strings.HasPrefix(form, "application/x-amz-json-1.") && !strings.HasPrefix(form, "application/x-amz-cbor-1.") {
		return ""
	}
	return one(h, TargetHeader)
}

// HopByHop says that a Connection header names others: between what is verified here
// and what is sent on they would go away.
func HopByHop(h http.Header) bool {
	for _, v := range h["Connection"] {
		for name := range strings.SplitSeq(v, ",") {
			switch strings.ToLower(strings.TrimSpace(name)) {
			case "", "close", "keep-alive":
			default:
				return true
			}
		}
	}
	return false
}
