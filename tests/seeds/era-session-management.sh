# The commands of the reference page 'era-session-management', in order; $BASE is the gateway.

#### 0
curl -X POST $BASE/api/sessions \
-H "Content-Type: application/json" \
-d '{
"language": "python",
"persistent": true
}'

#### 1
curl -X POST $BASE/api/sessions \
-H "Content-Type: application/json" \
-d '{
"language": "python",
"persistent": true,
"session_id": "my-data-processor"
}'

#### 2
curl -X POST $BASE/api/sessions \
-H "Content-Type: application/json" \
-d '{
"language": "python",
"persistent": true,
"session_id": "user-123-workspace",
"data": {
"user_id": "123",
"project": "data-analysis",
"created_by": "api-client-v1"
},
"metadata": {
"version": "1.0",
"environment": "production"
}
}'

#### 3
SESSION_ID="data-processor"
# Create session
curl -X POST $BASE/api/sessions \
-H "Content-Type: application/json" \
-d "{
\"language\": \"python\",
\"persistent\": true,
\"session_id\": \"$SESSION_ID\"
}"

#### 4
# First run - setup
curl -X POST $BASE/api/sessions/$SESSION_ID/run \
-H "Content-Type: application/json" \
-d '{
"code": "data = []\nprint(\"Data initialized\")"
}'
# Second run - append data
curl -X POST $BASE/api/sessions/$SESSION_ID/run \
-H "Content-Type: application/json" \
-d '{
"code": "data.append({\"value\": 42})\nprint(f\"Data length: {len(data)}\")"
}'
# Third run - data persists
curl -X POST $BASE/api/sessions/$SESSION_ID/run \
-H "Content-Type: application/json" \
-d '{
"code": "data.append({\"value\": 99})\nprint(f\"Data: {data}\")"
}'

#### 5
curl $BASE/api/sessions/$SESSION_ID

#### 6
curl -X DELETE $BASE/api/sessions/$SESSION_ID

#### 7
curl $BASE/api/sessions

#### 8
curl -X POST $BASE/api/sessions/data-processor/duplicate \
-H "Content-Type: application/json" \
-d '{
"new_id": "data-processor-backup",
"data": {
"cloned_from": "data-processor",
"purpose": "backup"
}
}'

#### 9
# Session A
curl -X POST $BASE/api/sessions/session-a/run \
-H "Content-Type: application/json" \
-d '{
"code": "secret = \"password123\"\nprint(secret)"
}'
# Session B - can't access session-a's variable
curl -X POST $BASE/api/sessions/session-b/run \
-H "Content-Type: application/json" \
-d '{
"code": "print(secret)" # NameError: name \"secret\" is not defined
}'

#### 10
# Good - descriptive session ID
session_id="user-${USER_ID}-analysis-$(date +%s)"
# Better - namespaced
session_id="prod:user:${USER_ID}:analysis:$(date +%s)"

#### 11
curl -X POST $BASE/api/sessions \
-H "Content-Type: application/json" \
-d '{
"language": "python",
"session_id": "session-123",
"data": {
"user_id": "123",
"purpose": "data-analysis",
"created_at": "2024-10-23T10:00:00Z",
"tags": ["production", "analytics"]
}
}'

#### 12
# List sessions
SESSIONS=$(curl -s $BASE/api/sessions | jq -r '.sessions[].id')
# Delete old sessions
for session in $SESSIONS; do
echo "Deleting $session"
curl -X DELETE $BASE/api/sessions/$session
done

#### 13
# Check if session exists before running
SESSION_ID="my-session"
STATUS=$(curl -s -o /dev/null -w "%{http_code}" \
$BASE/api/sessions/$SESSION_ID)
if [ $STATUS -eq 200 ]; then
# Session exists, run code
curl -X POST $BASE/api/sessions/$SESSION_ID/run \
-H "Content-Type: application/json" \
-d '{"code": "print(\"Hello\")"}'
else
echo "Session not found, creating..."
curl -X POST $BASE/api/sessions \
-H "Content-Type: application/json" \
-d "{\"language\": \"python\", \"session_id\": \"$SESSION_ID\"}"
fi

#### 14
# Create a template with common imports
curl -X POST $BASE/api/sessions/template-python/run \
-H "Content-Type: application/json" \
-d '{
"code": "import json\nimport math\nimport re\nprint(\"Template initialized\")"
}'
# Clone for each user
curl -X POST $BASE/api/sessions/template-python/duplicate \
-H "Content-Type: application/json" \
-d '{"new_id": "user-123-workspace"}'

#### 15
# Stage 1: Data collection
curl -X POST $BASE/api/sessions/workflow-1/run \
-H "Content-Type: application/json" \
-d '{
"code": "data = [1, 2, 3, 4, 5]\nprint(f\"Collected {len(data)} items\")"
}'
# Stage 2: Processing (minutes later)
curl -X POST $BASE/api/sessions/workflow-1/run \
-H "Content-Type: application/json" \
-d '{
"code": "processed = [x * 2 for x in data]\nprint(f\"Processed: {processed}\")"
}'
# Stage 3: Results (hours later)
curl -X POST $BASE/api/sessions/workflow-1/run \
-H "Content-Type: application/json" \
-d '{
"code": "total = sum(processed)\nprint(f\"Total: {total}\")"
}'
