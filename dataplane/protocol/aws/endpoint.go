package aws

import (
	"fmt"
	"regexp"
	"strings"
)

// partition is a part of AWS with accounts and names of its own.
type partition struct {
	name    string
	regions *regexp.Regexp
	suffix  string
	sts     string           // a region that every account has
	global  map[string]place // services that one place serves
}

// place is where requests for a service go, and the region that signs them.
type place struct {
	host, region string
}

var partitions = [...]partition{
	{"aws", regexp.MustCompile(`^(us|eu|ap|sa|ca|me|af|il|mx)-[a-z]+-[0-9]{1,2}$`), "amazonaws.com", "us-east-1", map[string]place{
		"account":          {"account.us-east-1", "us-east-1"},
		"billingconductor": {"billingconductor.us-east-1", "us-east-1"},
		"budgets":          {"budgets", "us-east-1"},
		"ce":               {"ce.us-east-1", "us-east-1"},
		"chime":            {"chime.us-east-1", "us-east-1"},
		"cloudfront":       {"cloudfront", "us-east-1"},
		"health":           {"global.health", "us-east-1"},
		"iam":              {"iam", "us-east-1"},
		"importexport":     {"importexport", "us-east-1"},
		"networkmanager":   {"networkmanager.us-west-2", "us-west-2"},
		"organizations":    {"organizations.us-east-1", "us-east-1"},
		"route53":          {"route53", "us-east-1"},
		"savingsplans":     {"savingsplans", "us-east-1"},
		"shield":           {"shield.us-east-1", "us-east-1"},
		"tax":              {"tax.us-east-1", "us-east-1"},
		"waf":              {"waf", "us-east-1"},
	}},
	{"aws-cn", regexp.MustCompile(`^cn-[a-z]+-[0-9]{1,2}$`), "amazonaws.com.cn", "cn-north-1", map[string]place{
		"iam":           {"iam.cn-north-1", "cn-north-1"},
		"organizations": {"organizations.cn-northwest-1", "cn-northwest-1"},
		"route53":       {"route53", "cn-northwest-1"},
	}},
	{"aws-us-gov", regexp.MustCompile(`^us-gov-[a-z]+-[0-9]{1,2}$`), "amazonaws.com", "us-gov-west-1", map[string]place{
		"iam":           {"iam.us-gov", "us-gov-west-1"},
		"organizations": {"organizations.us-gov-west-1", "us-gov-west-1"},
		"route53":       {"route53.us-gov", "us-gov-west-1"},
	}},
}

// prefixes are hosts of services whose name in signatures is another one.
var prefixes = map[string]string{
	"appstream":              "appstream2",
	"awsssoportal":           "portal.sso",
	"detective":              "api.detective",
	"ecr":                    "api.ecr",
	"ecr-public":             "api.ecr-public",
	"iot-jobs-data":          "data.jobs.iot",
	"iotdata":                "data-ats.iot",
	"iotdeviceadvisor":       "api.iotdeviceadvisor",
	"ioteventsdata":          "data.iotevents",
	"iotmanagedintegrations": "api.iotmanagedintegrations",
	"IoTSecuredTunneling":    "api.tunneling.iot",
	"iotwireless":            "api.iotwireless",
	"mediatailor":            "api.mediatailor",
	"memorydb":               "memory-db",
	"mobiletargeting":        "pinpoint",
	"pricing":                "api.pricing",
	"qapps":                  "data.qapps",
	"sagemaker":              "api.sagemaker",
	"ses":                    "email",
	"sso-oauth":              "oidc",
	"wickr":                  "admin.wickr",
}

// nowhere are names in signatures that do not say the host: it is the user's own
// (an API, a bucket, a domain), or one of several.
var nowhere = map[string]bool{
	"aoss": true, "aws-marketplace": true, "cases": true, "execute-api": true, "lambda-url": true, "lex": true, "payment-cryptography": true, "s3-object-lambda": true,
	"s3-outposts": true, "s3express": true, "timestream": true, "vpc-lattice-svcs": true,
}

// partitionOf finds the partition of a region.
func partitionOf(region string) (partition, bool) {
	for _, p := range partitions {
		if p.regions.MatchString(region) {
			return p, true
		}
	}
	return partition{}, false
}

// streams is how operations of DynamoDB's streams begin: they are signed as
// DynamoDB and served elsewhere.
const streams = "DynamoDBStreams_"

// locate is AWS's own place for a service in a region.
func locate(service, region, target string) (place, error) {
	p, ok := partitionOf(region)
	if !ok {
		return place{}, fmt.Errorf("%q is not a region of AWS that is known here", region)
	}
	if nowhere[service] {
		return place{}, fmt.Errorf("where requests for %q go cannot be told from their signature", service)
	}
	if at, ok := p.global[service]; ok {
		return place{at.host + "." + p.suffix, at.region}, nil
	}
	if _, ok := partitions[0].global[service]; ok {
		return place{}, fmt.Errorf("service %q is not known in partition %s", service, p.name)
	}
	host := service
	if other, ok := prefixes[service]; ok {
		host = other
	} else if service != strings.ToLower(service) || strings.Contains(service, "_") {
		return place{}, fmt.Errorf("%q is not a service of AWS that is known here", service)
	}
	if service == "dynamodb" && strings.HasPrefix(target, streams) {
		host = "streams.dynamodb"
	}
	return place{host + "." + region + "." + p.suffix, region}, nil
}
