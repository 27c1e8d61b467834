package fetch

// Settle waits for the connections that Warm opens, and leaves them open.
func (c *Client) Settle() { c.warming.Wait() }
