package inventory

import (
	"encoding/json"
	"fmt"
	"maps"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/store"
)

// Bounds of what is stored of a resource.
const (
	maxDescription = 512
	maxProtocol    = 32
	maxAddress     = 512
	maxVersion     = 64
	maxLabels      = 64
	maxLabelName   = 128
	maxLabelValue  = 256
)

// resourceRecord is how a resource stands in the store; kind, name and agent
// are its key's, and repeated here.
type resourceRecord struct {
	Kind        sallyport.Kind    `json:"kind"`
	Name        string            `json:"name"`
	AgentID     string            `json:"agent"`
	ID          string            `json:"id,omitempty"`
	Description string            `json:"description,omitempty"`
	Protocol    string            `json:"protocol,omitempty"`
	Address     string            `json:"address,omitempty"`
	Hostname    string            `json:"hostname,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	Group       string            `json:"group,omitempty"`
	Version     string            `json:"version,omitempty"`
}

func encodeResource(r sallyport.Resource) ([]byte, error) {
	return json.Marshal(resourceRecord{Kind: r.Kind, Name: r.Name, AgentID: r.AgentID, ID: r.ID, Description: r.Description,
		Protocol: r.Protocol, Address: r.Address, Hostname: r.Hostname, Labels: r.Labels, Group: r.Group, Version: r.Version})
}

func decodeResource(it store.Item) (sallyport.Resource, error) {
	var r resourceRecord
	if err := json.Unmarshal(it.Value, &r); err != nil {
		return sallyport.Resource{}, fmt.Errorf("%s: %w", it.Key, err)
	}
	return sallyport.Resource{Kind: r.Kind, Name: r.Name, AgentID: r.AgentID, ID: r.ID, Description: r.Description,
		Protocol: r.Protocol, Address: r.Address, Hostname: r.Hostname, Labels: r.Labels, Group: r.Group, Version: r.Version}, nil
}

// sameResource says that nothing would change by writing r.
func sameResource(r sallyport.Resource, had held) bool {
	if had.revision == 0 || !maps.Equal(r.Labels, had.Labels) {
		return false
	}
	r.Labels, had.Labels = nil, nil
	x, errX := encodeResource(r)
	y, errY := encodeResource(had.Resource)
	return errX == nil && errY == nil && string(x) == string(y)
}

// bounded says which field of a resource cannot be stored, or "".
func bounded(r sallyport.Resource) string {
	if !knownKind(r.Kind) {
		return "the kind is not known"
	}
	for _, f := range []struct {
		what, value string
		most        int
	}{
		{"name", r.Name, maxHostName},
		{"host name", r.Hostname, maxHostName},
		{"description", r.Description, maxDescription},
		{"protocol", r.Protocol, maxProtocol},
		{"address", r.Address, maxAddress},
		{"group", r.Group, maxLabel},
		{"version", r.Version, maxVersion},
	} {
		if !text(f.value, f.most) {
			return "its " + f.what + " is too long or not printable"
		}
	}
	if len(r.Labels) > maxLabels {
		return fmt.Sprintf("it has more than %d labels", maxLabels)
	}
	for k, v := range r.Labels {
		if k == "" || !text(k, maxLabelName) || !text(v, maxLabelValue) {
			return "a label is empty, too long or not printable"
		}
	}
	return ""
}

func knownKind(k sallyport.Kind) bool {
	switch k {
	case sallyport.KindNode, sallyport.KindDatabase, sallyport.KindKube, sallyport.KindApp, sallyport.KindTCP, sallyport.KindDesktop:
		return true
	}
	return false
}
