// Package sigv4 knows AWS's clients: it reads what they have signed by Signature
// Version 4, checks it against a key, and tells them in their own errors what is
// wrong.
//
// Signatures are made by the SDK's signer, here only to compare.
package sigv4
