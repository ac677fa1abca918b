"""A model behind an OpenAI-compatible API, a teacher or a judge: each response is paid once.

`client` sends one request and checks the response; `pace` limits how many are in flight.
`collection` sends a list of questions and keeps the responses in a `store`, within a `budget`.

    endpoint = Endpoint("https://api.example.com/v1", "some-model", "TEACHER_API_KEY")
    async with Client(endpoint) as client:
        reply = await client.chat([{"role": "user", "content": "Hello"}], {"temperature": 0})
        reply.completions[0].text
"""
