package sallyport

// Kind is the kind of a resource. Its value is the label under the cluster's
// name in server names: <name>.<kind>.<cluster>.
type Kind string

const (
	KindNode     Kind = "node"
	KindDatabase Kind = "db"
	KindKube     Kind = "kube"
	KindApp      Kind = "app"
	KindTCP      Kind = "tcp"
	KindDesktop  Kind = "desktop"
)

// ProtocolAWS is the protocol of an application that is Amazon's cloud: roles say
// as which of its roles it may be used.
const ProtocolAWS = "aws"

// Resource is something that an agent serves. Kind and Name together are its
// key; Name is one DNS label.
type Resource struct {
	Kind        Kind
	Name        string
	ID          string // nodes: the agent's UUID, which is a name too
	Description string
	Protocol    string // databases: "postgres"; applications at AWS: ProtocolAWS
	Address     string // where the agent dials; shown to users who may see the resource
	Hostname    string // nodes: the host's own name, before it became a slug
	Labels      map[string]string
	AgentID     string
	Group       string // agents with the same group may serve the same name
	Version     string // of the agent that serves it
}

// Lock blocks a target at once: new sessions are refused and running ones end
// within a second. All fields of Target that are set must match.
type Lock struct {
	Name    string
	Target  LockTarget
	Message string
	Expires int64 // Unix seconds; 0 for never
}

// LockTarget names who or what is locked. Empty fields match everything, but a
// target with no field set matches nothing.
type LockTarget struct {
	User     string
	Role     string
	Login    string
	ServerID string // an agent's UUID
	MFA      string // device id
	Request  string // access request id
}
