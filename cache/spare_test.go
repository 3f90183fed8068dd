package cache

// held is how many bytes there are.
func (s *spare) held() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bytes
}
