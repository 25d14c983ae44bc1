package ca

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/durable"
	"github.com/sallyport/sallyport/dataplane/handover/failpoint"
)

// Sealer encrypts what must not stand in the store in clear. name is the name
// of the record and of the part of it: a sealed value opens under its own name
// only. Both methods may be called concurrently.
type Sealer interface {
	Seal(name string, plain []byte) ([]byte, error)
	Open(name string, sealed []byte) ([]byte, error)
}

// FileKey is a Sealer whose key is a file. A sealed value is
//
//	version(1) key id(8) nonce(12) AES-256-GCM ciphertext and tag
//
// with the name as additional data. Nonces are random: 2^32 values may be
// sealed under one key (NIST SP 800-38D, section 8.3), far more than there are.
type FileKey struct {
	id   [8]byte
	aead cipher.AEAD
}

const (
	sealVersion = 1
	keySize     = 32
	maxSealed   = 1 << 20
)

// OpenKeyFile reads the key-encryption key, and makes one when there is no
// such file. The file is readable by its owner only, or refused.
func OpenKeyFile(path string) (*FileKey, error) {
	key, err := readKey(path)
	if errors.Is(err, fs.ErrNotExist) {
		key, err = makeKey(path)
	}
	if err != nil {
		return nil, err
	}
	// Nothing is sealed by a key that a power cut could take away, also when
	// whoever made it was killed before its directory was synced.
	if err := durable.SyncDir(filepath.Dir(path)); err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(append([]byte("sallyport key id\x00"), key...))
	k := &FileKey{aead: aead}
	copy(k.id[:], sum[:])
	return k, nil
}

func readKey(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0 {
		return nil, &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: "key file " + path + " can be read by others",
			Hint: "chmod 600 " + path}
	}
	text, err := io.ReadAll(io.LimitReader(f, 1<<10))
	if err != nil {
		return nil, err
	}
	key, err := base64.StdEncoding.DecodeString(string(bytes.TrimSpace(text)))
	if err != nil || len(key) != keySize {
		return nil, &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: "key file " + path + " does not hold a key",
			Hint: "restore it from the backup: without it the CA's keys cannot be read"}
	}
	return key, nil
}

// makeKey writes a new key under its name, whole. When another process was
// faster, its key is taken.
func makeKey(path string) ([]byte, error) {
	key := make([]byte, keySize)
	rand.Read(key)
	tmp, err := os.CreateTemp(filepath.Dir(path), ".key-*") // 0600
	if err != nil {
		return nil, err
	}
	defer os.Remove(tmp.Name())
	if _, err := tmp.WriteString(base64.StdEncoding.EncodeToString(key) + "\n"); err != nil {
		tmp.Close()
		return nil, err
	}
	if err := errors.Join(failpoint.Hit("ca.key.sync"), tmp.Sync(), tmp.Close(), failpoint.Hit("ca.key.link")); err != nil {
		return nil, err
	}
	if err := os.Link(tmp.Name(), path); errors.Is(err, fs.ErrExist) {
		return readKey(path)
	} else if err != nil {
		return nil, err
	}
	return key, failpoint.Hit("ca.key.linked")
}

// Seal encrypts.
func (k *FileKey) Seal(name string, plain []byte) ([]byte, error) {
	if len(plain) > maxSealed/2 {
		return nil, fmt.Errorf("%s: %d bytes are too many to seal", name, len(plain))
	}
	out := make([]byte, 1+len(k.id)+k.aead.NonceSize(), 1+len(k.id)+k.aead.NonceSize()+len(plain)+k.aead.Overhead())
	out[0] = sealVersion
	copy(out[1:], k.id[:])
	nonce := out[1+len(k.id):]
	rand.Read(nonce)
	return k.aead.Seal(out, nonce, plain, []byte(name)), nil
}

// Open decrypts what Seal made under the same name.
func (k *FileKey) Open(name string, sealed []byte) ([]byte, error) {
	head := 1 + len(k.id)
	if len(sealed) < head+k.aead.NonceSize()+k.aead.Overhead() || len(sealed) > maxSealed || sealed[0] != sealVersion {
		return nil, fmt.Errorf("%s: not a sealed value", name)
	}
	if !bytes.Equal(sealed[1:head], k.id[:]) {
		return nil, &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: name + " was sealed with another key file",
			Hint: "use the key file of the auth server that made the store"}
	}
	body := sealed[head:]
	plain, err := k.aead.Open(nil, body[:k.aead.NonceSize()], body[k.aead.NonceSize():], []byte(name))
	if err != nil {
		return nil, fmt.Errorf("%s: the sealed value was changed", name)
	}
	return plain, nil
}
