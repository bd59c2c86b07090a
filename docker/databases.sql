CREATE DATABASE prefect OWNER tabdiff;
