package alpn

// Alert is the description of a TLS alert (RFC 8446, section 6).
type Alert uint8

const (
	DecodeError           Alert = 50
	InternalError         Alert = 80
	UnrecognizedName      Alert = 112 // RFC 6066, section 3
	NoApplicationProtocol Alert = 120 // RFC 7301, section 3.2
)

// AlertSize is the length of an alert's record.
const AlertSize = 7

// Record is the alert as a fatal, unprotected TLS record.
func (a Alert) Record() [AlertSize]byte {
	// type alert(21), legacy_record_version 1.2, length 2, level fatal(2)
	return [AlertSize]byte{21, 3, 3, 0, 2, 2, byte(a)}
}
