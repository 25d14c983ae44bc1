//go:build unix && !linux

package relay

// kinds are the implementations that the suites run on.
func kinds() map[string]func() (Loop, error) {
	return map[string]func() (Loop, error){"portable": NewPortable}
}
