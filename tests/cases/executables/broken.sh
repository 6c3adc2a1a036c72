echo 'Hello, I am the cloud.'
